"""Secrets of the environment are in no byte of what a run leaves behind, nor in what it says."""

from __future__ import annotations

import base64
import os
import subprocess
import sys
import urllib.parse
import zipfile
import zlib
from pathlib import Path

import pytest
import yaml

import methods
from damaged_files import ROOT
from ssl_toolkit.cli import main
from ssl_toolkit.io.credentials import check_no_password

# every one is its own text, so that what leaks can be told
SECRETS = {
    "WANDB_API_KEY": "c0ffee" + "5ecret0wandb0key".ljust(34, "7"),
    "AWS_SECRET_ACCESS_KEY": "5ecretAwsKey/canary+WithPunctuation0000000",
    "AWS_ACCESS_KEY_ID": "AKIA5ECRETCANARY0000",
    "AWS_SESSION_TOKEN": "5ecretSessionCanaryToken",
    "HF_TOKEN": "hf_5ecretHubCanaryToken",
    "GITHUB_TOKEN": "ghp_5ecretGithubCanaryToken",
    "http_proxy": "5ecretProxyPassword",
    "https_proxy": "5ecretSecureProxyPassword",
    "SOME_PASSWORD": "5ecretPasswordOfSomethingElse",
}
# no file of the recipe's own is needed for drawings
RECIPE = {
    **methods.recipe("SimCLR", Path("unused"), max_epochs=2),
    "tracker": {"mode": "offline", "project": "canary"},
}


def environment(home: Path) -> dict[str, str]:
    """One with the secrets, where everything that a run writes lies below a folder."""
    values = dict(os.environ, **SECRETS, OMP_NUM_THREADS="1", HOME=str(home), XDG_CACHE_HOME=str(home / "cache"))
    for name in ("http_proxy", "https_proxy"):
        # a proxy that nobody serves: what cannot connect to it complains of it
        values[name] = values[name.upper()] = f"http://canary:{SECRETS[name]}@127.0.0.1:9"
    values["PYTHONPATH"] = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    return {name: value for name, value in values.items() if not name.startswith("WANDB_") or name in SECRETS}


def disguises(secret: str) -> list[bytes]:
    """The secret, and what it may be written as."""
    texts = {secret, urllib.parse.quote(secret), urllib.parse.quote(secret, safe=""), secret.encode().hex()}
    # base64 of a longer text: three ways to begin, without the ends that depend on what is around
    texts |= {base64.b64encode(b"x" * shift + secret.encode())[4:-4].decode() for shift in range(3)}
    return [text.encode() for text in texts] + [secret.encode("utf-16-le")]


def unpacked(content: bytes) -> bytes:
    """What is in it, with what is compressed in it."""
    if content.startswith(b"PK"):
        import io

        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            content += b"".join(archive.read(name) for name in archive.namelist())
    if content.startswith((b"\x1f\x8b", b"\x78")):
        content += zlib.decompressobj(wbits=47).decompress(content)
    return content


def leaks(contents: dict[str, bytes]) -> list[str]:
    hidden = {name: disguises(secret) for name, secret in SECRETS.items()}
    return [
        f"{name} in {place}"
        for place, content in contents.items()
        for name, texts in hidden.items()
        if any(text in unpacked(content) for text in texts)
    ]


def below(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def call(home: Path, *arguments: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [sys.executable, "-m", "ssl_toolkit", *arguments],
        env=environment(home), cwd=home, capture_output=True, timeout=200, check=False,
    )  # fmt: skip


def test_the_search_finds_what_it_is_there_for(tmp_path):
    import io

    import torch

    secret = SECRETS["AWS_SECRET_ACCESS_KEY"]
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("inner", secret * 3)
    saved = io.BytesIO()
    torch.save({"note": secret}, saved)
    contents = {
        "plain": f"a {secret} b".encode(),
        "json": urllib.parse.quote(secret, safe="").encode(),
        "base64": base64.b64encode(b"user:" + secret.encode() + b"@host"),
        "zip": buffer.getvalue(),
        "checkpoint": saved.getvalue(),
        "packed": zlib.compress(secret.encode() * 3),
    }
    assert leaks(contents) == [f"AWS_SECRET_ACCESS_KEY in {place}" for place in contents]
    assert leaks({"nothing": b"nothing"}) == []


@pytest.mark.guarantee("S6")
@pytest.mark.slow
@pytest.mark.timeout(500)
def test_no_secret_of_the_environment_is_written_or_said(tmp_path, reached):
    home = tmp_path / "home"
    home.mkdir()
    (home / "recipe.yaml").write_text(yaml.safe_dump(RECIPE))
    done = call(home, "pretrain", "-c", "recipe.yaml", "--out", "run")
    assert done.returncode == 0, done.stderr.decode()[-3000:]
    # a run that fails says why: here it is the proxy that cannot be reached
    fetched = ["--model.backbone.name", "resnet10t.c3_in1k", "--model.backbone.pretrained", "true"]
    failed = call(home, "pretrain", "-c", "recipe.yaml", "--out", "failed", *fetched, "--model.backbone.kwargs", "null")
    assert failed.returncode == 2, failed.stderr.decode()[-3000:]
    files = below(home)
    names = set(files)
    for expected in (
        "config.yaml",
        "environment.json",
        "metrics.csv",
        "status.json",
        "report.html",
        "backbone.safetensors",
    ):
        assert f"run/{expected}" in names
    assert any(name.startswith("run/checkpoints/") and name.endswith(".ckpt") for name in names)
    recorded = [name for name in names if name.endswith(".wandb")]
    assert recorded
    # what is not there cannot be found: the recording of W&B is of this run and not compressed
    assert b"canary" in files[recorded[0]]
    for name, output in (("pretrain", done), ("failed", failed)):
        files |= {f"{name} stdout": output.stdout, f"{name} stderr": output.stderr}
    assert leaks(files) == []
    reached(
        f"{len(SECRETS)} secrets of the environment (W&B, AWS, Hugging Face, proxies with passwords) in none of "
        f"{sum(map(len, files.values())):,} bytes of {len(files)} files and outputs, W&B's recording among them"
    )


@pytest.mark.guarantee("S6")
def test_an_address_with_a_password_is_refused_before_anything_is_written(tmp_path, capsys, monkeypatch, reached):
    monkeypatch.chdir(tmp_path)
    secret = "5ecretInAnAddress"
    recipe = {**RECIPE, "tracker": "none"}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    (tmp_path / "told.yaml").write_text(
        yaml.safe_dump({**recipe, "tracker": {"notes": f"see https://me:{secret}@host/"}})
    )
    before = set(tmp_path.rglob("*"))
    cases = [
        ["pretrain", "-c", "recipe.yaml", "--data.path", f"s3://key:{secret}@bucket/images"],
        ["pretrain", "-c", "recipe.yaml", f"--data.path=gs://key:{secret}@bucket/images", "--data.source", "folder"],
        ["pretrain", "-c", "told.yaml", "--out", "run"],
        ["evaluate", "--weights", f"https://me:{secret}@host/backbone.safetensors"],
    ]
    for arguments in cases:
        assert main(arguments) == 2
        said = capsys.readouterr()
        assert "address with a password" in said.err
        assert said.err.count("\n") == 1
        assert secret not in said.out + said.err
    assert {path for path in tmp_path.rglob("*") if ".images" not in path.name and "wandb" not in path.name} == before
    reached(f"an address with a password in it refused in {len(cases)} of {len(cases)} places, and not repeated")


@pytest.mark.parametrize(
    "harmless",
    [
        "s3://bucket/images",
        "https://host:8080/path",
        "C:\\images",
        "user@host:path",
        "https://user@host/",
        "a: b@c",
        "x://y:@z",
    ],
)
def test_addresses_without_a_password_are_none(harmless):
    check_no_password({"data": {"path": harmless, "others": [harmless]}})
