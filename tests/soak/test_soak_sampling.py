"""A short soak of the sampler, with the same questions as a long one.

It is too short to judge the memory. `tests/soak/test_soak.py` tests what judges that of a long one.
"""

from pathlib import Path

from tests.asking.service import install_asked_model
from tests.soak.sampling import ask_for

MINUTES = 0.1


def test_models_that_are_asked_everything_give_no_wrong_answer(tmp_path: Path) -> None:
    install_asked_model(tmp_path / "data", source=tmp_path / "our-tiny")

    outcome = ask_for(
        tmp_path / "data",
        tmp_path,
        minutes=MINUTES,
        seed=7,
        is_enough=lambda statuses: statuses[200] > 20 and statuses[400] > 0,
    )

    assert outcome.problems == []
