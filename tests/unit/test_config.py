"""Settings are checked once, at start, and a typo cannot pass for one."""

from __future__ import annotations

import dataclasses
import re
import resource

import pytest

from legacy_poll.config import PREFIX, Settings
from legacy_poll.errors import ConfigError

FIELDS = {each.name: each for each in dataclasses.fields(Settings)}
NUMBERS = [name for name, each in FIELDS.items() if each.type in ("int", "float")]


def test_the_defaults_are_valid():
    assert Settings() == Settings.from_mapping({}) == Settings.from_environ({})


def test_the_defaults_that_the_design_promises():
    settings = Settings()
    assert settings.database_url == "sqlite:///legacy_poll.db"
    assert settings.max_event_bytes == 256 * 1024
    assert (settings.public, settings.publish_token, settings.start) == (False, "", "oldest")


def test_what_is_in_the_environment_is_read_by_its_type():
    settings = Settings.from_environ(
        {
            "LEGACY_POLL_HOLD_SECONDS": "2.5",
            "LEGACY_POLL_MAX_EVENTS": "7",
            "LEGACY_POLL_PUBLIC": "1",
            "LEGACY_POLL_DATABASE_URL": "postgresql://db/app",
            "PATH": "/bin",
            "LEGACY": "x",
        }
    )
    assert settings == Settings(
        hold_seconds=2.5, max_events=7, public=True, database_url="postgresql://db/app"
    )
    assert (type(settings.max_events), type(settings.hold_seconds)) == (int, float)


def test_an_unknown_variable_is_an_error_that_names_the_nearest():
    with pytest.raises(
        ConfigError, match="LEGACY_POLL_HOLD_SECOND is not a setting.*mean LEGACY_POLL_HOLD_SECONDS"
    ):
        Settings.from_environ({"LEGACY_POLL_HOLD_SECOND": "1"})
    with pytest.raises(ConfigError, match=r"LEGACY_POLL_QQQQ is not a setting of legacy_poll$"):
        Settings.from_mapping({"LEGACY_POLL_QQQQ": 1})


def test_keys_of_an_app_config_that_are_not_ours_are_not_looked_at():
    assert (
        Settings.from_mapping({"SECRET_KEY": "x", "hold_seconds": 1, 7: 8, ("LEGACY_POLL_",): 9})
        == Settings()
    )


def test_keyword_arguments_come_before_the_mapping():
    assert Settings.from_mapping({"LEGACY_POLL_MAX_EVENTS": 5}, max_events=6).max_events == 6


@pytest.mark.parametrize("name", NUMBERS)
@pytest.mark.parametrize("value", ["", "many", "nan", "inf", "-1", "1e999", None, [], "0x10"])
def test_a_number_that_is_none_is_an_error_that_names_variable_and_value(name, value):
    variable = PREFIX + name.upper()
    with pytest.raises(ConfigError) as caught:
        Settings.from_mapping({variable: value})
    assert str(caught.value).startswith("%s is %r: " % (variable, value))
    assert str(caught.value).endswith("is needed")


@pytest.mark.parametrize("name", [name for name in NUMBERS if FIELDS[name].type == "int"])
@pytest.mark.parametrize("value", ["1.5", 1.5, True])
def test_a_whole_number_is_needed_where_things_are_counted(name, value):
    with pytest.raises(ConfigError, match="a whole number is needed"):
        Settings(**{name: value})


@pytest.mark.parametrize("name", NUMBERS)
def test_bounds_are_inclusive(name):
    least, most = FIELDS[name].metadata["least"], FIELDS[name].metadata["most"]
    assert getattr(Settings(**{name: least}), name) == least
    if most != float("inf"):
        assert getattr(Settings(**{name: most}), name) == most
        with pytest.raises(ConfigError, match="^[^ ]+ is .*: [0-9.]+ to %d is needed$" % most):
            Settings(**{name: most * 2})
    with pytest.raises(ConfigError, match="is needed"):
        Settings(**{name: least - 1})


@pytest.mark.parametrize("value", ["1", "true", "TRUE", "yes", "on", True, 1])
def test_a_flag_is_on(value):
    assert Settings(public=value).public is True


@pytest.mark.parametrize("value", ["0", "false", "No", "off", "", False, 0])
def test_a_flag_is_off(value):
    assert Settings(public=value).public is False


def test_another_flag_is_an_error():
    with pytest.raises(ConfigError, match="LEGACY_POLL_PUBLIC is 'maybe': 1 or 0 is needed"):
        Settings(public="maybe")


def test_where_to_start_is_one_of_two():
    assert Settings(start="now").start == "now"
    with pytest.raises(ConfigError, match="start is 'here': oldest or now is needed"):
        Settings(start="here")


def test_text_must_be_text():
    with pytest.raises(ConfigError, match="LEGACY_POLL_PUBLISH_TOKEN is int: text is needed"):
        Settings(publish_token=7)


def test_a_short_secret_is_refused_without_being_shown():
    with pytest.raises(ConfigError, match="secret_key has 7 characters: at least 16") as caught:
        Settings(secret_key="hunter2")
    assert "hunter2" not in str(caught.value)


def test_secrets_are_not_in_the_repr():
    secrets = {
        "database_url": "postgresql://app:hunter2@db/app",
        "secret_key": "hunter2" * 3,
        "publish_token": "hunter2",
    }
    text = repr(Settings(**secrets))
    assert "hunter2" not in text
    assert "hold_seconds" in text


def test_settings_do_not_change():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Settings().hold_seconds = 1


@pytest.mark.parametrize("name", FIELDS)
def test_every_setting_is_described_by_a_sentence(name):
    described = Settings.described()[PREFIX + name.upper()]
    assert re.fullmatch(r"\S.{10,}\S", described), described
    assert described.endswith(".")


def test_half_of_the_descriptors_may_be_held(monkeypatch):
    for limit, held in ((1024, 512), (10, 100), (10**6, 10_000), (-1, 10_000)):
        monkeypatch.setattr(resource, "getrlimit", lambda which, limit=limit: (limit, limit))
        assert Settings().max_held == held


def test_headers_that_may_vary_are_names_with_commas():
    assert Settings().varying == ()
    assert Settings(varying_headers="X-Request-Id, traceparent,").varying == ("X-Request-Id", "traceparent")


@pytest.mark.parametrize(
    "name", ["Cookie", "AUTHORIZATION", "X-Forwarded-For", "Host", "a b", "X-Id: 1", "X-\u00dc", "x" * 101]
)
def test_a_header_that_says_who_asks_or_that_is_no_name_may_not_vary(name):
    with pytest.raises(ConfigError, match="VARYING_HEADERS has") as caught:
        Settings(varying_headers="X-Request-Id," + name)
    assert name[:20] in str(caught.value)
