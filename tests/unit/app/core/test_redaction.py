import pytest

from app.core.redaction import redact

CANARY = "0123456789abcdef" * 4
KEY = f"tnr_01k9abcdefghjkmnpqrstvwxyz_{CANARY}_0a1b2c3d"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (f"Authorization: Bearer {CANARY}", "Authorization: Bearer [hidden]"),
        (f"(b'authorization', b'Bearer {KEY}')", "(b'authorization', b'Bearer [hidden]')"),
        ("authorization: basic dXNlcjpwYXNz", "authorization: basic [hidden]"),
        (f"cookie: theme=dark; tunery_key={KEY}", "cookie: theme=dark; tunery_key=[hidden]"),
        (f"GET /v1/files/{KEY} 404", "GET /v1/files/[hidden] 404"),
        (f"api_key={CANARY}&limit=5", "api_key=[hidden]&limit=5"),
        (f'{{"password": "{CANARY}"}}', '{"password": "[hidden]"}'),
        (f"postgresql://tunery:{CANARY}@db/tunery", "postgresql://[hidden]@db/tunery"),
        (f"host=db password={CANARY} port=1", "host=db password=[hidden] port=1"),
        (f"a token of the hub: hf_{CANARY}", "a token of the hub: [hidden]"),
        (f"OpenAI's own: sk-proj-{CANARY}.", "OpenAI's own: [hidden]."),
        (f"whsec_{CANARY}", "[hidden]"),
    ],
)
def test_what_looks_like_a_secret_is_hidden(text: str, shown: str) -> None:
    assert redact(text) == shown


@pytest.mark.parametrize(
    "text",
    [
        "GET /v1/fine_tuning/jobs/ftjob-01k9abcdefghjkmnpqrstvwxyz 200 3 ms",
        "metrics on http://127.0.0.1:9464/metrics",
        "the task-force-of-everything step 12/24 key_id=key_01k9abcdefghjkmnpqrstvwxyz",
        "postgresql://db:5432/tunery",
    ],
)
def test_everything_else_is_shown_as_it_is(text: str) -> None:
    assert redact(text) == text
