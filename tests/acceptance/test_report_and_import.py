"""`tunery report` and `tunery import`, against a service that trains."""

from openai.types.fine_tuning import FineTuningJob

from tests.acceptance.client_command import Client

REPORT_S = 240
"""Limit for a command that waits until the service has made a report, in seconds."""

HOSTILE = "Who?\x1b]0;title\x07"


def test_a_report_is_waited_for_and_shown(tunery: Client, finished_job: FineTuningJob) -> None:
    printed, said = tunery.run("report", finished_job.id, within_s=REPORT_S)

    headings, *scores = printed.splitlines()[:3]
    assert headings.split() == ["SCORE", "BASE", "TUNED"]
    assert [line.split("  ")[0] for line in scores] == ["exact match", "token F1"]
    assert "8 examples of the validation file are scored." in said
    for title in ("Prompt: ", "Reference: ", "Base", "Tuned"):
        assert f"\n{title}" in printed


def test_prompts_are_answered_in_a_new_report(tunery: Client, finished_job: FineTuningJob) -> None:
    asked = ("--prompt", HOSTILE, "--prompt", "And now?")
    printed, _ = tunery.run("report", finished_job.id, *asked, within_s=REPORT_S)
    made = tunery.read_json("report", finished_job.id)

    assert "\nPrompt: Who?" in printed
    assert "\x1b" not in printed
    assert "\nPrompt: And now?\n" in printed
    assert "Reference" not in printed
    assert [each["prompt"] for each in made["report"]["answers"]][1] == "And now?"
    refused = tunery.run("report", finished_job.id, *("--prompt", "Hi") * 6, code=2)[1]
    assert refused.startswith("report: ")


def test_an_adapter_is_imported_under_a_name(tunery: Client, finished_job: FineTuningJob) -> None:
    tunery.run("download", finished_job.id, "--output", "adapter.zip")

    printed, _ = tunery.run("import", "adapter.zip", "--model", "tiny", "--suffix", "Mine")
    shown = tunery.read_json("import", "adapter.zip", "--model", "tiny")

    name = printed.removesuffix("\n")
    assert name.startswith("ft:tiny:tunery:mine:")
    assert name in tunery.run("models", "available")[0]
    assert shown["imported"]["filename"] == "adapter.zip"


def test_what_is_no_adapter_is_refused(tunery: Client) -> None:
    (tunery.place / "no.zip").write_bytes(b"no archive")

    said = tunery.run("import", "no.zip", "--model", "tiny", code=2)[1]
    missing = tunery.run("import", "gone.zip", "--model", "tiny", code=2)[1]

    assert said.startswith("import: ")
    assert missing == "import: gone.zip: No such file or directory.\n"
