import pytest

from app.core.job.child.child_text import last_line, without_paths


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ('File "/srv/tunery/worker/train.py", line 3', 'File "[path]", line 3'),
        ("file:///srv/tunery/data/x.db", "file://[path]"),
        ("cannot open /root/.ssh/id_rsa: denied", "cannot open [path]: denied"),
        ("[Errno 2] No such file: '/a/b c'", "[Errno 2] No such file: '[path] c'"),
        ("out/step-3: manifest.json is too large", "out/step-3: manifest.json is too large"),
        ("1/2 of 3 tokens/s", "1/2 of 3 tokens/s"),
    ],
)
def test_a_text_for_clients_names_no_directory_of_the_machine(text: str, shown: str) -> None:
    assert without_paths(text) == shown


@pytest.mark.parametrize(
    ("log", "shown"),
    [
        ("", ""),
        ("\n \n", ""),
        ("Traceback ...\nOSError: /srv/x is full\n\n", "OSError: [path] is full"),
        ("one\n" + "x" * 5000, "x" * 297 + "..."),
        ("one\n\x1b]0;owned\x07", "\ufffd]0;owned\ufffd"),
    ],
)
def test_clients_are_shown_one_line_of_a_log(log: str, shown: str) -> None:
    assert last_line(log) == shown
