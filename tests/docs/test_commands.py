"""Every command on the pages is one that the programs take: parsed by their own parsers, and not run."""

from __future__ import annotations

import argparse
import importlib.util
import re
import runpy
import shutil
import subprocess
import sys
from collections.abc import Sequence
from functools import cache
from itertools import takewhile
from pathlib import Path
from typing import Any

import pytest
import typer.main

from pipedec.cli import app
from tests.docs.pages import PAGES, ROOT, Command, commands

ALL = list({(command.words, command.whole): command for page in PAGES for command in commands(page)}.values())


def of(program: str) -> list[Any]:
    found = [command for command in ALL if command.words[0] == program]
    return [pytest.param(command, id=str(command)) for command in found]


@pytest.mark.parametrize("command", of("pipedec"))
def test_pipedec(command: Command) -> None:
    group = typer.main.get_command(app)
    context = group.make_context("pipedec", list(command.words[1:]), resilient_parsing=True)
    name, sub, rest = group.resolve_command(context, list(command.words[1:]))
    assert sub is not None
    sub.make_context(name, rest, parent=context, resilient_parsing=not command.whole)
    files = [rest[i + 1] for i, word in enumerate(rest[:-1]) if word in ("-f", "--file")]
    assert [file for file in files if "/" in file and not (ROOT / file).exists()] == []


@pytest.mark.parametrize("command", of("make"))
def test_make(command: Command) -> None:
    targets = set(re.findall(r"^([a-z0-9]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert {word for word in command.words[1:] if "=" not in word} <= targets


class Parsed(Exception):
    """The arguments were taken."""


@pytest.mark.parametrize("command", of("python"))
def test_python_modules(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    assert command.words[1] == "-m"
    module, *arguments = command.words[2:]
    name = module
    found = importlib.util.find_spec(module)
    if found is not None and found.submodule_search_locations is not None:
        name = f"{module}.__main__"
        found = importlib.util.find_spec(name)
    assert found is not None, f"there is no module {module}"
    assert found.origin is not None
    if "argparse" not in Path(found.origin).read_text():
        assert all((ROOT / argument).exists() for argument in arguments)
        return
    parse = argparse.ArgumentParser.parse_args

    def only_parse(parser: argparse.ArgumentParser, given: Sequence[str] | None = None) -> None:
        for action in parser._actions if not command.whole else ():
            action.required = False  # within a sentence, what is clear is left out
        parse(parser, given)
        raise Parsed

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", only_parse)
    monkeypatch.setattr(sys, "argv", [module, *arguments])
    monkeypatch.delitem(sys.modules, name, raising=False)  # runpy warns of what it runs a second time
    with pytest.raises(Parsed):
        runpy.run_module(name, run_name="__main__")


@pytest.mark.parametrize("command", of("docker"))
def test_docker_builds_what_exists(command: Command) -> None:
    assert command.words[1] == "build"
    assert (ROOT / command.words[command.words.index("-f") + 1]).is_file()


@cache
def said(*words: str) -> str:
    return subprocess.run(words, capture_output=True, text=True, check=False).stdout


@pytest.mark.e2e
@pytest.mark.parametrize("command", [*of("helm"), *of("kubectl")])
def test_helm_and_kubectl(command: Command) -> None:
    program, *rest = command.words
    if shutil.which(program) is None:
        pytest.fail(f"{program} is not on PATH; install it, as for all tests that need a cluster")
    verbs = list(takewhile(lambda word: re.fullmatch(r"[a-z][a-z-]*", word), rest[:3]))
    usage = said(program, verbs[0], "--help")
    assert usage, f"{program} has no {verbs[0]}"
    everywhere = said(program, "options") if program == "kubectl" else ""
    flags = [word.partition("=")[0] for word in rest if word.startswith("-") and word != "-"]
    known = everywhere.join(said(program, *verbs[: n + 1], "--help") for n in range(len(verbs))) + everywhere
    assert [flag for flag in flags if not re.search(rf"(?<![\w-]){re.escape(flag)}\b", known)] == []
    paths = [word for word in rest if re.match(r"(charts|crds|examples)/", word)]
    assert [path for path in paths if not (ROOT / path).exists()] == []


def test_there_are_commands_to_check() -> None:
    """That the tests above look at something."""
    programs = [command.words[0] for command in ALL]
    assert min(programs.count(program) for program in ("pipedec", "make", "python", "helm", "kubectl", "docker")) > 0
    assert len({command.words[1] for command in ALL if command.words[0] == "pipedec"}) >= 6
