"""Secrets stay in the environment."""

from __future__ import annotations

import logging

import pytest

from neuro.errors import InputError
from neuro.redaction import RedactedFormatter, check_config, check_words, redact, redacted

VALUE = "s3cr3t-0123456789"


@pytest.fixture(
    params=["WANDB_API_KEY", "HF_TOKEN", "AWS_SECRET_ACCESS_KEY", "MY_SECRET", "db_password"]
)
def name(request, monkeypatch):
    monkeypatch.setenv(request.param, VALUE)
    return request.param


def test_the_value_of_a_secret_is_replaced_by_its_name(name):
    assert redact(f"a{VALUE}b {VALUE}") == f"a<{name}>b <{name}>"
    assert redacted({"a": [VALUE, 1, None], VALUE: (VALUE,)}) == {
        "a": [f"<{name}>", 1, None],
        f"<{name}>": (f"<{name}>",),
    }


def test_a_secret_within_another_leaves_nothing_of_it(monkeypatch):
    monkeypatch.setenv("A_TOKEN", VALUE)
    monkeypatch.setenv("B_TOKEN", f"{VALUE}-and-more")
    assert redact(f"{VALUE}-and-more") == "<B_TOKEN>"


def test_other_variables_and_short_values_stay(monkeypatch):
    monkeypatch.setenv("KEYBOARD", "querty-uiop")
    monkeypatch.setenv("SOME_KEY", "1")
    assert redact("querty-uiop 1") == "querty-uiop 1"


def test_no_line_of_a_log_holds_a_secret(name):
    try:
        raise ValueError(f"what {VALUE} caused")
    except ValueError as error:
        caught = (type(error), error, error.__traceback__)
    record = logging.LogRecord("neuro", logging.INFO, "", 1, "it is %s", (VALUE,), caught)
    line = RedactedFormatter("%(message)s").format(record)
    assert line.count(f"<{name}>") == 2
    assert VALUE not in line


@pytest.mark.parametrize(
    "word",
    [
        *("logger.wandb.api_key=X", "+logger.wandb.api_key=X", "++a.hf_token=X"),
        *("a.password=X", "token=X", "a.client_secret='X'"),
    ],
)
def test_a_secret_of_the_command_line_is_refused_and_not_repeated(word):
    with pytest.raises(InputError, match="environment") as told:
        check_words(["seed=1", word.replace("X", VALUE)])
    assert VALUE not in str(told.value)


def test_a_word_that_holds_the_value_of_a_variable_is_refused(name):
    with pytest.raises(InputError, match=rf"run\.name=<{name}>") as told:
        check_words([f"run.name={VALUE}"])
    assert VALUE not in str(told.value)


@pytest.mark.parametrize(
    "word",
    [
        *("data.labels.key=subject", "system.text.image_token=<image>", "data.max_tokens=4"),
        *("logger.wandb.api_key=null", "logger.wandb.api_key=${oc.env:WANDB_API_KEY}"),
        *("~logger.wandb.api_key", "model/tokenizer=x", "data=bids"),
    ],
)
def test_words_that_only_look_alike_are_taken(word, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", VALUE)
    check_words([word])


def test_a_secret_in_a_config_file_is_refused():
    check_config({"logger": {"wandb": {"api_key": None}}, "data": {"labels": {"key": "a"}}})
    for config in ({"a": {"api_key": VALUE}}, {"a": [{"password": VALUE}]}, {"hf_token": VALUE}):
        with pytest.raises(InputError, match="is a secret") as told:
            check_config(config)
        assert VALUE not in str(told.value)
