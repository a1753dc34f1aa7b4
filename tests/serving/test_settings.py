from __future__ import annotations

import dataclasses
import stat
from pathlib import Path

import pytest
from typer.testing import CliRunner

import cli
from features.errors import ConfigError
from serving.security.identity import Credentials, hashed
from serving.settings import ROOT, Settings, worker_count


def settings(tmp_path: Path, **env: str) -> Settings:
    return Settings.from_env(
        {"WARDCAST_VAR": str(tmp_path / "var")} | {f"WARDCAST_{k}": v for k, v in env.items()}
    )


def test_the_default_is_loopback_with_a_token_and_a_key_of_its_own(tmp_path: Path):
    first, second = settings(tmp_path), settings(tmp_path)
    assert (first.host, first.port, first.clock) == ("127.0.0.1", 3000, "wall")
    assert first.token == second.token
    assert len(first.token or "") >= 40
    assert first.store_key == second.store_key
    assert len(first.store_key) == 64
    for name in ("token", "key"):
        assert stat.S_IMODE((tmp_path / "var" / name).stat().st_mode) == 0o600


def test_secrets_never_show_in_a_printed_setting(tmp_path: Path):
    made = settings(tmp_path)
    assert made.token not in repr(made)
    assert made.store_key not in repr(made)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.7"])
def test_another_address_needs_credentials_and_tls(tmp_path: Path, host: str):
    with pytest.raises(ConfigError, match=r"WARDCAST_TOKENS_FILE and WARDCAST_TLS_CERT"):
        settings(tmp_path, HOST=host)
    with pytest.raises(ConfigError, match="Also set WARDCAST_TLS_CERT"):
        settings(tmp_path, HOST=host, TOKENS_FILE=str(tmp_path / "tokens.csv"))
    with pytest.raises(ConfigError, match="both files"):
        settings(tmp_path, HOST=host, TOKENS_FILE=str(tmp_path / "t"), TLS_CERT=str(tmp_path / "c"))
    files = {"TOKENS_FILE": "tokens.csv", "TLS_CERT": "cert.pem", "TLS_KEY": "key.pem"}
    made = settings(tmp_path, HOST=host, **{k: str(tmp_path / v) for k, v in files.items()})
    assert not made.is_loopback
    assert made.token is None
    assert made.url.startswith("https://")


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("HOST", "myhost.example", "IP address"),
        ("PORT", "70000", "whole number from 0 to 65,535"),
        ("PORT", "3e3", "whole number"),
        ("CLOCK", "sundial", "wall or replay"),
        ("TIMEZONE", "Mars/Olympus", "Europe/Berlin"),
        ("LOG_LEVEL", "loud", "debug, info"),
        ("MAX_EVENTS", "0", "whole number from 1"),
    ],
)
def test_a_setting_that_cannot_be_names_its_variable(tmp_path: Path, name: str, value: str, said: str):
    with pytest.raises(ConfigError, match=f"WARDCAST_{name}.*{said}"):
        settings(tmp_path, **{name: value})


def test_looking_at_what_is_not_there_makes_nothing(tmp_path: Path):
    """`wardcast explain` where no service ever ran: no key, no token, no folder."""
    done = CliRunner().invoke(cli.app, ["explain", "unknown"], env={"WARDCAST_VAR": str(tmp_path / "var")})
    assert done.exit_code == 1
    assert isinstance(done.exception, ConfigError)
    assert "no service has run here" in str(done.exception)
    assert list(tmp_path.iterdir()) == []
    made = settings(tmp_path)
    (tmp_path / "var" / "wardcast.db").touch()
    assert Settings.from_env({"WARDCAST_VAR": str(tmp_path / "var")}, make=False).store_key == made.store_key


def test_settings_survive_the_way_to_another_process(tmp_path: Path):
    made = settings(
        tmp_path, PORT="3111", TIMEZONE="Europe/Berlin", CLOCK="replay", SITE="north", MAX_EVENTS="77"
    )
    assert Settings.from_env(made.environment()) == made


def test_every_setting_reaches_another_process_and_stands_in_the_readme(tmp_path: Path):
    files = {
        name: str(tmp_path / name.lower())
        for name in (
            "TOKENS_FILE", "TLS_CERT", "TLS_KEY", "STORE_KEY_FILE", "SEPSIS_MODEL", "ADMISSIONS_MODEL", "SITE_MAP",
            "CDS_FILE", "ALERTS_FILE", "PUSH_FILE", "SMTP_PASSWORD_FILE",
        )
    }  # fmt: skip
    made = settings(
        tmp_path, **files, HOST="127.0.0.2", PORT="3111", STORE_URL=f"sqlite:///{tmp_path / 'other.db'}",
        TIMEZONE="Europe/Berlin", CLOCK="replay", LOG_LEVEL="debug", SITE="north", WORKERS="2", MAX_BODY_BYTES="2048",
        MAX_EVENTS="77", MLLP_HOST="127.0.0.3", MLLP_PORT="2575", MLLP_MAX_BYTES="4096", MLLP_KEEP_DAYS="9",
        MLLP_SENDERS="10.0.0.0/8,LAB@NORTH", PUBLIC_URL="https://risk.example.org", HUDDLES="08:00,16:00",
        MONITOR="06:30", FEEDS_MINUTES="7", SMTP="smtps://ward@mail.example.org", MAIL_FROM="a@example.org",
        MAIL_TO="b@example.org,c@example.org",
    )  # fmt: skip
    usual = {f.name: f.default for f in dataclasses.fields(Settings) if f.default is not dataclasses.MISSING}
    kept = {name for name, value in usual.items() if getattr(made, name) == value}
    assert kept == {"token"}, "a field without a variable, or one that this test does not set"
    assert Settings.from_env(made.environment()) == made
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert [name for name in made.environment() if f"`{name}`" not in readme] == []


def test_a_store_whose_key_is_gone_is_not_given_a_new_one(tmp_path: Path):
    made = settings(tmp_path)
    Path(made.store_url.removeprefix("sqlite:///")).touch()
    (tmp_path / "var" / "key").unlink()
    with pytest.raises(ConfigError, match="Restore the key"):
        settings(tmp_path)


def test_a_secret_that_others_can_read_is_refused(tmp_path: Path):
    settings(tmp_path)
    (tmp_path / "var" / "token").chmod(0o644)
    with pytest.raises(ConfigError, match="chmod 600"):
        settings(tmp_path)


def test_workers_are_a_number():
    assert worker_count({}) == 1
    assert worker_count({"WARDCAST_WORKERS": "3"}) == 3
    with pytest.raises(ConfigError, match="WARDCAST_WORKERS"):
        worker_count({"WARDCAST_WORKERS": "many"})


def test_named_tokens_are_kept_as_hashes_only(tmp_path: Path):
    path = tmp_path / "tokens.csv"
    path.write_text(f"name,role,sha256\n# the interface engine\nengine,integrator,{hashed('s3cret')}\n")
    known = Credentials.of(settings(tmp_path, TOKENS_FILE=str(path)))
    caller = known.caller("s3cret")
    assert caller is not None
    assert (caller.name, caller.role) == ("engine", "integrator")
    assert known.caller(hashed("s3cret")) is None
    assert known.caller("") is None


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("engine,integrator,s3cret\n", "line 1: write name,role,sha256"),
        (f"name,role,sha256\nengine,king,{'0' * 64}\n", "line 2.*viewer, integrator, admin"),
        ("name,role,sha256\n", "names no caller"),
    ],
)
def test_a_tokens_file_that_cannot_be_read_names_the_line(tmp_path: Path, text: str, said: str):
    path = tmp_path / "tokens.csv"
    path.write_text(text)
    with pytest.raises(ConfigError, match=said) as error:
        Credentials.of(settings(tmp_path, TOKENS_FILE=str(path)))
    assert "s3cret" not in str(error.value)
