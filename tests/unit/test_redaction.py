"""Secrets in texts, options and command lines are replaced, and nothing else is."""

import json
import shlex
import string
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imf_ray.config import default_overrides
from imf_ray.redaction import MASK, redact, redact_command, redact_options

SECRETS = st.text(string.ascii_letters + string.digits + "/+=_~.$*:-", min_size=8).map(
    lambda text: f"s3{text}cr3t"
)
NAMES = st.sampled_from(
    [
        *("token", "api_key", "apiKey", "API-KEY", "password", "passwd", "secretAccessKey"),
        *("AWS_SECRET_ACCESS_KEY", "AWS_ACCESS_KEY_ID", "HF_TOKEN", "SWANLAB_API_KEY"),
        *("AZURE_STORAGE_CONNECTION_STRING", "AccountKey", "sas_token", "Authorization"),
        *("client_secret", "private_key", "x-amz-security-token", "credentials", "PGPASSWORD"),
    ]
)
URLS = st.sampled_from(
    [
        "https://user:{}@host/path",
        "s3://key:{}@bucket/runs/a",
        "https://host/demos?token={}",
        "https://bucket.host/a/b.hdf5?X-Amz-Algorithm=A&X-Amz-Signature={}&X-Amz-Expires=9",
        "https://account.blob.host/c?sv=2024&sig={}#top",
        "https://host/?{}",
        "https://host/callback#access_token={}",
        "simplecache::https://user:{}@host/path",
    ]
)


@given(SECRETS, URLS)
def test_urls(secret: str, url: str) -> None:
    text = url.format(secret)
    assert secret not in redact(text)
    assert secret not in redact(f"Error: {text} cannot be read: 403")
    assert secret not in redact(f"'{text}'") and secret not in redact(f"[{text}, b]")
    assert secret not in redact_command(["imf-ray", "train", f"data.dataset_dir={text}"])
    assert secret not in str(redact_options({"data.dataset_dir": text, "a": {"b": [text]}}))


def test_a_key_instead_of_a_user_name() -> None:
    assert redact("https://s3cr3t@host:443/a") == f"https://{MASK}@host:443/a"


@given(SECRETS, NAMES)
def test_values_of_secret_names(secret: str, name: str) -> None:
    texts = [
        f"{name}={secret}",
        f"run with {name}={secret} now",
        f"{name}: {secret}",
        f"kwargs={{{name}: {secret}, width: 3}}",
        json.dumps({name: secret, "width": 3}),
        str({name: secret}),
        f"--{name} {secret}",
        f"--{name}={secret}",
    ]
    for text in texts:
        assert secret not in redact(text), text
        assert secret not in redact_command(["env", text, "imf-ray"])
    options = {"task.adapter.kwargs": {name: secret, "list": [{name: secret}]}, name: secret}
    assert secret not in str(redact_options(options))
    command = redact_command(["imf-ray", f"--{name}", f"{secret} with a space", f"{name}={secret}"])
    assert secret not in command and shlex.split(command)[2] == MASK


@pytest.mark.parametrize(
    "text",
    [
        "Authorization: Bearer s3cr3t-value",
        "authorization='Basic s3cr3t-value'",
        "key AKIAIOSFODNN7EXAMPLE of a bucket",
        "ghp_0123456789abcdefghij0123456789",
        "hf_abcdefghijklmnopqrstuvwx",
        "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.c2lnbmF0dXJl",
    ],
)
def test_known_forms(text: str) -> None:
    assert MASK in redact(text) and not any(
        part in redact(text) for part in ("s3cr3t", "AKIAI", "ghp_", "hf_abc", "eyJ")
    )


@pytest.mark.parametrize(
    "text",
    [
        "http://127.0.0.1:8265/#/jobs/raysubmit_1",
        "http://host:8080/a@b",
        "s3://bucket/runs/sweep@2/trials",
        "author: me, n_kv_head=3, tokens=4, multitoken: true, passes=2, assignment=x",
        "The gradient norm is inf at step 40: lower train.lr (now 1e+30).",
        "runs/a/checkpoint_00001000: model.safetensors is missing",
        "success 0.75 [0.60, 0.86] of 20",
    ],
)
def test_other_texts_stay(text: str) -> None:
    assert redact(text) == text


def test_options_of_the_package_stay() -> None:
    for override in default_overrides().values():
        assert shlex.split(redact_command([override])) == [override]
    values: dict[str, Any] = {"agent.head.n_emb": 64, "token": None, "use_auth": True, "a": [1, 2]}
    assert redact_options(values) == values
