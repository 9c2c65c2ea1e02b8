"""The page that creates a job: from a dropped file to a job that trains."""

import json
import re
from pathlib import Path

from playwright.sync_api import Page, Route, expect

from tests.browser.members import Member
from tests.waiting import wait_until

_SAMPLE = Path(__file__).parents[2] / "examples" / "lighthouse-train.jsonl"
_PREFERENCES = _SAMPLE.with_name("lighthouse-preferences.jsonl")
_BAD = '{"messages": [{"role": "user", "content": "Hi"}]}\n{"prompt": "no end\n'


def drop_file(page: Page, name: str, content: str) -> None:
    """Drop a file of the file manager onto the page."""
    script = """([name, content]) => {
      const transfer = new DataTransfer();
      transfer.items.add(new File([content], name));
      return transfer;
    }"""
    transfer = page.evaluate_handle(script, [name, content])
    page.locator(".drop").dispatch_event("drop", {"dataTransfer": transfer})


def choose_file(page: Page, path: Path) -> None:
    page.locator(".drop input").set_input_files(path)


def test_from_a_dropped_file_to_a_started_job(member: Member) -> None:
    page = member.sign_in()
    page.get_by_role("main").get_by_role("link", name="New job").first.click()

    drop_file(page, "bad.jsonl", _BAD)
    problems = page.get_by_role("region", name="Problems by line")
    expect(problems.locator("tbody tr")).to_have_count(2)
    expect(problems.locator("tbody tr").nth(1)).to_contain_text("2")
    member.tabs.forgive("400")

    drop_file(page, "keeper.jsonl", _SAMPLE.read_text("utf-8"))
    expect(problems).to_be_hidden()
    expect(page.locator(".figures").first).to_contain_text("64")
    learned = page.locator(".tokens .learned").filter(has_text="Ahoy! I am Tamsin Gale")
    expect(learned.first).to_be_visible(timeout=60_000)
    expect(page.get_by_text("Peak memory")).to_be_visible(timeout=60_000)

    page.get_by_label("Epochs").fill("3")
    page.get_by_label("Name", exact=False).last.scroll_into_view_if_needed()
    page.locator("#field-suffix").fill("keeper")
    page.locator("#field-metadata").fill("team=sea")
    prompts = page.get_by_label("Prompts for both models")
    prompts.fill(f"Who are you?\n{'x' * 4001}")
    expect(page.locator("#field-eval_prompts-about .wrong")).to_contain_text("4000 characters")
    member.tabs.forgive("400")
    prompts.fill("Who are you?\n\nAnd where?")
    call = page.get_by_label("The call")
    expect(call).to_contain_text('"n_epochs": 3')
    page.get_by_role("button", name="Start the job").click()

    expect(page).to_have_url(re.compile(r"/job\?id=ftjob-"))
    job = member.api.get(f"/v1/fine_tuning/jobs/{page.url.partition('=')[2]}").json()
    assert job["user_provided_suffix"] == "keeper"
    assert job["hyperparameters"]["n_epochs"] == 3
    assert job["metadata"] == {"team": "sea"}
    assert job["eval_prompts"] == ["Who are you?", "And where?"]
    wait_until(
        lambda: member.api.get(f"/v1/fine_tuning/jobs/{job['id']}").json()["progress"] > 0,
        within_s=120,
    )


def test_the_shown_call_makes_the_same_job(member: Member) -> None:
    file = member.upload("keeper.jsonl", _SAMPLE.read_bytes())
    page = member.sign_in(f"/new?file={file}")
    page.get_by_label("Batch size").fill("4")

    text = page.get_by_label("The call").inner_text()

    body = json.loads(text.partition("-d '")[2].removesuffix("'"))
    body["file"] = body.pop("training_file")
    job = member.create_job(**body)
    read = member.api.get(f"/v1/fine_tuning/jobs/{job}").json()
    assert (read["training_file"], read["hyperparameters"]["batch_size"]) == (file, 4)


def test_a_file_of_preferences_gets_the_form_of_preference_tuning(member: Member) -> None:
    pairs = member.upload("pairs.jsonl", _PREFERENCES.read_bytes())
    texts = member.upload("keeper.jsonl", _SAMPLE.read_bytes())
    page = member.sign_in(f"/new?file={texts}")
    expect(page.locator("#field-beta")).to_be_hidden()
    page.get_by_text("All settings").click()
    page.get_by_label("Train on", exact=False).first.select_option("everything")

    page.locator("select[name=training_file]").select_option(pairs)

    preferred = page.locator(".rows > li").first
    expect(preferred).to_contain_text("Preferred answer", timeout=60_000)
    expect(preferred).to_contain_text("Other answer")
    expect(page.get_by_label("Train on", exact=False)).to_have_count(0)
    page.locator("#field-beta").fill("0.3")
    page.get_by_label("Label smoothing", exact=False).fill("0.5")
    smoothing = page.locator(".field", has=page.get_by_label("Label smoothing", exact=False))
    expect(smoothing).to_contain_text("This must be 0 to 0.5")
    page.get_by_label("Label smoothing", exact=False).fill("0.1")
    expect(page.get_by_label("The call")).to_contain_text('"type": "dpo"')
    page.get_by_label("and wait until I resume").check()
    page.get_by_role("button", name="Create the job, paused").click()

    expect(page).to_have_url(re.compile(r"/job\?id=ftjob-"))
    job = member.api.get(f"/v1/fine_tuning/jobs/{page.url.partition('=')[2]}").json()
    shown = job["method"]["dpo"]["hyperparameters"]
    assert (shown["beta"], shown["label_smoothing"]) == (0.3, 0.1)
    settings = page.locator("dl.settings", has_text="beta")
    expect(settings).to_contain_text("0.3")
    expect(settings).to_contain_text("dpo")
    page.get_by_role("button", name="YAML").click()
    expect(page.get_by_label("YAML", exact=True).last).to_contain_text("    beta: 0.3")


def test_the_form_survives_a_reload(member: Member) -> None:
    file = member.upload("keeper.jsonl", _SAMPLE.read_bytes())
    page = member.sign_in(f"/new?file={file}")
    page.get_by_label("Epochs").fill("7")
    page.get_by_text("All settings").click()
    page.get_by_label("Weight decay").fill("0.25")
    page.goto("/new")

    page.reload()

    expect(page.get_by_label("Epochs")).to_have_value("7")
    expect(page.get_by_label("The call")).to_contain_text(file)
    expect(page.get_by_label("The call")).to_contain_text('"weight_decay": 0.25')


def test_a_value_outside_its_range_is_told_at_its_field(member: Member) -> None:
    file = member.upload("keeper.jsonl", _SAMPLE.read_bytes())
    page = member.sign_in(f"/new?file={file}")

    page.get_by_label("Epochs").fill("51")

    expect(page.locator(".field", has=page.get_by_label("Epochs"))).to_contain_text(
        "This must be 1 to 50."
    )
    page.get_by_role("button", name="Start the job").click()
    expect(page.get_by_label("Epochs")).to_be_focused()
    assert member.api.get("/v1/fine_tuning/jobs").json()["data"] == []


def test_what_the_api_refuses_is_told_at_the_field_that_it_names(member: Member) -> None:
    file = member.upload("keeper.jsonl", _SAMPLE.read_bytes())
    page = member.sign_in(f"/new?file={file}")
    page.get_by_text("All settings").click()

    page.get_by_label("Target modules").fill("no_such_layer")
    page.get_by_role("button", name="Start the job").click()

    field = page.locator(".field", has=page.get_by_label("Target modules"))
    expect(field.get_by_role("alert")).to_contain_text("no_such_layer")
    expect(page.get_by_role("button", name="Start the job")).to_be_enabled()
    member.tabs.forgive("400")


def test_two_clicks_make_one_job(member: Member) -> None:
    file = member.upload("keeper.jsonl", _SAMPLE.read_bytes())
    page = member.sign_in(f"/new?file={file}")
    expect(page.get_by_label("The call")).to_contain_text(file)

    page.get_by_role("button", name="Start the job").dblclick()

    expect(page).to_have_url(re.compile(r"/job\?id=ftjob-"))
    assert len(member.api.get("/v1/fine_tuning/jobs").json()["data"]) == 1


def test_a_lost_answer_makes_one_job(member: Member) -> None:
    file = member.upload("keeper.jsonl", _SAMPLE.read_bytes())
    page = member.sign_in(f"/new?file={file}")
    expect(page.get_by_label("The call")).to_contain_text(file)
    is_jobs = re.compile(r"/v1/fine_tuning/jobs$")

    def lose_answer(route: Route) -> None:
        """Let the request do its work, and the page not know of it."""
        kept = ("content-type", "idempotency-key")
        headers = {name: route.request.headers[name] for name in kept}
        member.api.post("/v1/fine_tuning/jobs", content=route.request.post_data, headers=headers)
        route.abort()

    page.route(is_jobs, lose_answer, times=1)

    page.get_by_role("button", name="Start the job").click()
    expect(page.locator(".problem")).to_contain_text("does not answer")
    member.tabs.forgive("ERR_FAILED")
    assert len(member.api.get("/v1/fine_tuning/jobs").json()["data"]) == 1
    page.get_by_role("button", name="Start the job").click()

    expect(page).to_have_url(re.compile(r"/job\?id=ftjob-"))
    assert len(member.api.get("/v1/fine_tuning/jobs").json()["data"]) == 1


def test_a_sample_leads_to_the_first_job(member: Member) -> None:
    page = member.sign_in()

    page.get_by_role("button", name="Try it with a sample").click()

    expect(page).to_have_url(re.compile(r"/new\?file=file-"))
    expect(page.locator(".figures").first).to_contain_text("lighthouse-train.jsonl")


def test_an_upload_can_be_cancelled(member: Member, tmp_path: Path) -> None:
    big = tmp_path / "big.jsonl"
    big.write_bytes(_SAMPLE.read_bytes() * 400)
    page = member.sign_in("/new")
    page.route("**/v1/files", lambda route: None)  # it never arrives

    choose_file(page, big)
    page.get_by_role("button", name="Cancel the upload").click()

    expect(page.locator("label.drop")).to_be_visible()
    assert member.api.get("/v1/files").json()["data"] == []
