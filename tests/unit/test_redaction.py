"""No secret that a URI, a command or an error carries is shown."""

from __future__ import annotations

from pathlib import Path

import pytest

from shoal.redaction import redact, redacted

pytestmark = pytest.mark.unit

SECRET = "hunter2-hunter2"


@pytest.mark.parametrize(
    "text",
    [
        "http://me:{}@host:5000/x",
        "https://{}@github.com/me/data",
        "postgresql+psycopg2://me:{}@db/mlflow",
        "s3://KEYID:{}@bucket/data?region=eu-west-1",
        "s3://bucket/data?access_key=a&secret_key={}&region=eu-west-1",
        "https://account.blob.core.windows.net/data?sv=2022-11-02&se=2027-01-01&sig={}&sp=r",
        "abfs://container@account/data?account_key={}",
        "https://b.s3.amazonaws.com/k?X-Amz-Credential={}&X-Amz-Date=1",
        "https://b.s3.amazonaws.com/k?X-Amz-Date=1&X-Amz-Security-Token={}",
        "https://storage.googleapis.com/b/o?X-Goog-Signature={}",
        "AWS_SECRET_ACCESS_KEY={} shoal train jobs/gpt.py",
        "MLFLOW_TRACKING_PASSWORD={}",
        "shoal train jobs/gpt.py --tracking-uri https://me:{}@mlflow --set data.train='s3://b/d?sig=x'",
        '{{"data.train": "s3://a:{}@b/c", "other": 1}}',
        "cannot read https://h/a?b=1&token={}: forbidden",
        '<a href="https://h/a?b=1&amp;token={}">',
    ],
)
def test_secrets_are_hidden(text: str) -> None:
    shown = redact(text.format(SECRET))
    assert SECRET not in shown
    assert "***" in shown
    assert redact(shown) == shown, "what was shown once may be shown again"


@pytest.mark.parametrize(
    "text",
    [
        "s3://bucket/data?region=eu-west-1&endpoint_override=localhost:9000",
        "abfs://container@account.dfs.core.windows.net/data",
        "sqlite:////a/b.db",
        "http://127.0.0.1:5000/#/experiments/1/runs/2",
        "step 5: loss=0.25 norm=1 tokens=1000; key positions 1..2",
        "shoal train jobs/gpt.py --set optimizer.lr=3e-4 --set task.width=256",
        "write me@example.org",
    ],
)
def test_everything_else_stays_as_it_is(text: str) -> None:
    assert redact(text) == text


def test_what_hides_nothing_is_not_copied(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("{}")
    (tmp_path / "model.bin").write_bytes(b"\xff\x00http://a:b@c")
    with redacted(tmp_path) as shown:
        assert shown == tmp_path


def test_files_with_secrets_are_copied_without(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe"
    (recipe / "more").mkdir(parents=True)
    (recipe / "more" / "data.py").write_text(f'train = "s3://me:{SECRET}@bucket/data"\n')
    (recipe / "gpt.py").write_text("import data\n")
    with redacted(recipe) as shown:
        assert shown.name == "recipe"
        assert {p.relative_to(shown).as_posix() for p in shown.rglob("*.py")} == {"gpt.py", "more/data.py"}
        assert (shown / "more" / "data.py").read_text() == 'train = "s3://me:***@bucket/data"\n'
    assert not shown.exists()
    assert SECRET in (recipe / "more" / "data.py").read_text(), "the run's own copy still works"
