"""The client side of the command `tunery`: it uses a service over HTTP, and none of its data.

`openai` and `rich` are imported where they are used, so that completion and `tunery serve` do not
wait for them. Decision 0048 says which command is on which side.
"""
