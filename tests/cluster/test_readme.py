"""The walk in `cluster/README.md`: every command is one that exists, with options that it has."""

import re
import shlex
import subprocess

import click
import pytest
from ray.scripts.scripts import cli as ray_cli
from ray.serve.scripts import cli as serve_cli

from tests.cluster.manifests import (
    CLUSTER,
    PROJECT,
    USAGE_ERROR,
    check_entrypoint,
    console_commands,
)

README = (CLUSTER / "README.md").read_text(encoding="utf-8")
COMMANDS = list(console_commands(README))
PROGRAMS = {
    *("kind", "docker", "sed", "helm", "kubectl", "umask", "mkdir", "python", "export"),
    *("ray", "serve", "aws", "curl", "echo"),
}
COPIES = {"cp", "mkdir"}


def of(program):
    return [words for words in COMMANDS if words[0] == program]


def check_click(group, words):
    """Parse without running: an unknown command or option raises."""
    command = group
    context = click.Context(group)
    while isinstance(command, click.Group):
        name, words = words[0], words[1:]
        command = command.get_command(context, name)
        assert command is not None, f"no such command: {name}"
    command.make_context(command.name, list(words))


def test_programs_are_known():
    assert {words[0] for words in COMMANDS} == PROGRAMS


@pytest.mark.parametrize("words", of("ray"), ids=lambda w: " ".join(w[1:5]))
def test_ray_takes_its_commands_and_ours_take_theirs(words):
    check_click(ray_cli, words[1:])
    if "--" in words:
        inner = words[words.index("--") + 1 :]
        if inner[0] not in COPIES:
            check_entrypoint(inner)


@pytest.mark.parametrize("words", of("serve"), ids=lambda w: " ".join(w[1:3]))
def test_serve_takes_its_commands(words):
    check_click(serve_cli, words[1:])


def test_an_unknown_option_is_noticed():
    for group, line in (
        (ray_cli, "job submit --submission x -- true"),
        (ray_cli, "job send -- true"),
        (serve_cli, "deploy --adress x cluster/serve.yaml"),
    ):
        with pytest.raises((click.ClickException, AssertionError)):
            check_click(group, shlex.split(line))
    for line in (
        "python jobs/training.py /shared/x",
        "python /tmp/train.py /shared/x",
        "braintumor-ray train /shared/x --recepe demo",
        "braintumor-ray trane /shared/x",
        "braintumor-ray phantom /shared/x --patient 4",
        "braintumor-ray verify",
    ):
        with pytest.raises((USAGE_ERROR, AssertionError)):
            check_entrypoint(shlex.split(line))


def test_files_that_are_named_exist():
    named = set(re.findall(r"\bcluster/[\w./-]+", " ".join(" ".join(words) for words in COMMANDS)))
    assert {"cluster/kind", "cluster/kuberay", "cluster/launcher.yaml"} <= named
    for name in named - {"cluster/kuberay/ray"}:  # the pattern `ray*.yaml`
        assert (PROJECT / name).exists(), name


def test_submissions_are_named():
    submits = [w for w in of("ray") if w[1:3] == ["job", "submit"] and "--runtime-env" not in w]
    assert len(submits) >= 5
    for words in submits:
        assert "--submission-id" in words


def test_a_bundle_is_published_on_a_new_volume(tmp_path):
    bundle = tmp_path / "runs" / "first" / "bundle"
    bundle.mkdir(parents=True)
    (words,) = [w for w in of("ray") if "publish-first" in w]
    job = subprocess.list2cmdline(words[words.index("--") + 1 :])  # as `ray job submit` joins them
    subprocess.run(job.replace("/shared", str(tmp_path)), shell=True, check=True)
    assert (tmp_path / "bundles" / "current").is_dir()


def test_cron_runs_the_whole_night(tmp_path):
    """cron gives a shell the line up to its first `%`, and no variable of a login."""
    (line,) = re.findall(r"`\d+ \d+ \* \* \* ([^`]+)`", README)
    assert shlex.split(line.partition("%")[0]) == ["sh", "$HOME/nightly.sh"]
    (script,) = re.findall(r"```sh\n(.*?)```", README, re.DOTALL)
    (tmp_path / "nightly.sh").write_text(script, encoding="utf-8")
    ray = tmp_path / "ray"
    ray.write_text('#!/bin/sh\necho "$RAY_AUTH_MODE $RAY_API_SERVER_ADDRESS $*"\n')
    ray.chmod(0o700)
    done = subprocess.run(
        ["sh", "-c", line.partition("%")[0]],
        env={"HOME": str(tmp_path), "PATH": f"{tmp_path}:/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=True,
    )
    start = (
        r"token http://\S+ job submit --no-wait --submission-id nightly-\d{4}-\d\d-\d\d -- python "
    )
    assert re.match(start, done.stdout)


def test_what_was_not_run_is_said():
    assert "not built" in README
    assert "not a medical device" in README
