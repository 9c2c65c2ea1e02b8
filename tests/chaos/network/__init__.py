"""Workers on machines of their own: network namespaces, whose links to the servers can fail.

python -m tests.chaos.network.run --help
"""
