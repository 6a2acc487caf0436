# SPDX-FileCopyrightText: The kmsops.fortanix_dsm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Reads and edits single top-level blocks of the vendor's ``config.yaml``, and leaves every other byte alone.

Only ``backup:`` and ``auditBackup:`` of that file are known [doc: Backup for Audit Log]; everything else belongs to the
vendor, so the file is never re-written from a parsed copy. DSM nodes have no YAML library for us, and a full YAML
reader is not needed: the blocks are nested mappings of plain values and lists of them. Whatever is not that (anchors,
tags, flow style, values over several lines) is refused with its line number and never guessed at.

PRIVATE to the collection.
"""

from __future__ import annotations

import json
import re
from typing import Any, Mapping, NamedTuple

_TOP_KEY = re.compile(r"""^(?P<key>[A-Za-z0-9_.-]+|"[^"\\]+"|'[^']+')[ \t]*:(?P<rest>[ \t].*)?$""")
_KEY = re.compile(r"""^(?P<key>[A-Za-z0-9_.-]+|"[^"\\]+"|'[^']+') *:(?P<rest> .*)?$""")
_BLOCK_SCALAR = re.compile(r"(^|[:\-] +)(![^ ]+ +)?[|>][-+0-9]*( +#.*)?$")
_INT = re.compile(r"^[-+]?(0|[1-9][0-9]*)$")
_FLOAT = re.compile(r"^[-+]?[0-9]+\.[0-9]+$")
_PLAIN = re.compile(r"^[A-Za-z0-9/_.][A-Za-z0-9/_.@+-]*( [A-Za-z0-9/_.@+-]+)*$")
_TRUE = ("true", "yes", "on")
_FALSE = ("false", "no", "off")
_NULL = ("", "~", "null")


class ConfigTextError(ValueError):
    """The text cannot be read or edited without guessing. ``line`` counts from 1; 0 means the whole text."""

    def __init__(self, line: int, problem: str) -> None:
        super().__init__(f"line {line}: {problem}" if line else problem)
        self.line = line
        self.problem = problem


class Block(NamedTuple):
    """One top-level key: lines ``start`` up to but not including ``end`` (from 0), without what trails it."""

    key: str
    start: int
    end: int


class _Entry(NamedTuple):
    key: str
    start: int
    end: int
    indent: int
    value: Any
    children: list[_Entry] | None
    comment: str


def blocks(text: str) -> list[Block]:
    """Top-level blocks in their order. Raises :class:`ConfigTextError` for tabs in indentation, a key that is there
    twice, and more than one document."""
    lines = _lines(text)
    found: list[Block] = []
    seen: dict[str, int] = {}
    scalar_indent: int | None = None
    last_content = 0
    for number, line in enumerate(lines):
        stripped = line.strip()
        lead = line[: len(line) - len(line.lstrip())]
        if scalar_indent is not None and (not stripped or len(lead) > scalar_indent):
            last_content = number
            continue
        scalar_indent = None
        if not stripped or stripped.startswith("#"):
            continue
        if "\t" in lead:
            raise ConfigTextError(number + 1, "a tab in the indentation; YAML allows spaces only")
        if not lead and (stripped == "---" or stripped.startswith("--- ") or stripped == "..."):
            if found or stripped != "---":
                raise ConfigTextError(number + 1, "a second document (or the end of the first) in the same file")
            continue
        if _BLOCK_SCALAR.search(stripped):
            scalar_indent = len(lead)
        match = _TOP_KEY.match(line) if not lead else None
        if match:
            key = match.group("key").strip("\"'")
            if key in seen:
                raise ConfigTextError(number + 1, f"the key {key} is there twice (first in line {seen[key]})")
            seen[key] = number + 1
            if found:
                found[-1] = found[-1]._replace(end=last_content + 1)
            found.append(Block(key, number, number + 1))
        elif not found and not stripped.startswith("%"):
            raise ConfigTextError(number + 1, "expected a key at the beginning of the line")
        last_content = number
    if found:
        found[-1] = found[-1]._replace(end=last_content + 1)
    return found


def read_block(text: str, key: str) -> dict[str, Any] | None:
    """The block as nested dictionaries, ``None`` when it is absent. Raises :class:`ConfigTextError`."""
    for block in blocks(text):
        if block.key == key:
            return _as_dict(_block_entries(_lines(text), block))
    return None


def write_block(text: str, key: str, wanted: Mapping[str, Any] | None) -> str:
    """``text`` with the block as ``wanted`` says; ``None`` removes it. The result is the same string when the block
    says so already. Inside a changed block, untouched lines and comments stay as they are."""
    ending = "\r" if text.split("\n", 1)[0].endswith("\r") else ""
    lines = text.split("\n")
    block = next((candidate for candidate in blocks(text) if candidate.key == key), None)
    if block is None:
        if wanted is None:
            return text
        addition = [line + ending for line in [key + ":", *_render_mapping(wanted, 2)]]
        if lines[-1] == "":
            return "\n".join(lines[:-1] + addition + [""])
        return "\n".join([*lines[:-1], lines[-1] + ending, *addition, ""])
    entries = _block_entries(_lines(text), block)
    if wanted is None:
        new: list[str] = []
    elif _same(_as_dict(entries), dict(wanted)):
        return text
    else:
        indent = entries[0].indent if entries else 2
        new = [lines[block.start], *_edit(lines, block.start + 1, block.end, entries, wanted, indent, ending)]
    return "\n".join(lines[: block.start] + new + lines[block.end :])


def _lines(text: str) -> list[str]:
    lines = [line.rstrip("\r") for line in text.split("\n")]
    lines[0] = lines[0].lstrip("\ufeff")
    return lines


def _block_entries(lines: list[str], block: Block) -> list[_Entry]:
    match = _TOP_KEY.match(lines[block.start])
    rest = (match.group("rest") or "").strip() if match else ""
    if rest and not rest.startswith("#"):
        raise ConfigTextError(
            block.start + 1, f"{block.key} is not written as an indented block, so it cannot be edited safely"
        )
    first = _next_content(lines, block.start + 1, block.end)
    if first is None:
        return []
    indent = _indent(lines[first])
    if indent == 0:
        raise ConfigTextError(first + 1, f"{block.key} holds something other than indented keys")
    entries, after = _mapping(lines, first, block.end, indent)
    if after != block.end:
        raise ConfigTextError(after + 1, "indented less than the lines before it, but not a key of its own")
    return entries


def _mapping(lines: list[str], start: int, limit: int, indent: int) -> tuple[list[_Entry], int]:
    entries: list[_Entry] = []
    seen: dict[str, int] = {}
    position = start
    while True:
        found = _next_content(lines, position, limit)
        if found is None:
            return entries, limit
        line = lines[found]
        if _indent(line) < indent:
            return entries, found
        if _indent(line) > indent:
            raise ConfigTextError(found + 1, "indented deeper than its neighbours")
        match = _KEY.match(line.strip())
        if not match:
            raise ConfigTextError(found + 1, "expected 'key: value'")
        key = match.group("key").strip("\"'")
        if key in seen:
            raise ConfigTextError(found + 1, f"the key {key} is there twice (first in line {seen[key]})")
        seen[key] = found + 1
        entry = _value(lines, found, limit, indent, key, (match.group("rest") or "").strip())
        entries.append(entry)
        position = entry.end


def _value(lines: list[str], start: int, limit: int, indent: int, key: str, rest: str) -> _Entry:
    literal, comment = _split_comment(rest, start + 1)
    following = _next_content(lines, start + 1, limit)
    deeper = following is not None and (
        _indent(lines[following]) > indent or (_indent(lines[following]) == indent and _is_item(lines[following]))
    )
    if literal or following is None or not deeper:
        if literal and following is not None and _indent(lines[following]) > indent:
            raise ConfigTextError(following + 1, "a value over several lines; write it on one")
        return _Entry(key, start, start + 1, indent, _scalar(literal, start + 1), None, comment)
    if _is_item(lines[following]):
        items, end = _sequence(lines, following, limit, _indent(lines[following]))
        return _Entry(key, start, end, indent, items, None, comment)
    children, _after = _mapping(lines, following, limit, _indent(lines[following]))
    if _after < limit and _indent(lines[_after]) > indent:
        raise ConfigTextError(_after + 1, "indented unlike any of its neighbours")
    return _Entry(key, start, children[-1].end, indent, _as_dict(children), children, comment)


def _sequence(lines: list[str], start: int, limit: int, indent: int) -> tuple[list[Any], int]:
    items: list[Any] = []
    end = start
    position = start
    while True:
        found = _next_content(lines, position, limit)
        if found is None or _indent(lines[found]) < indent or not _is_item(lines[found]):
            if found is not None and _indent(lines[found]) > indent:
                raise ConfigTextError(found + 1, "only lists of plain values can be edited safely")
            return items, end
        literal, _comment = _split_comment(lines[found].strip()[1:].strip(), found + 1)
        if not literal or _KEY.match(literal) or _indent(lines[found]) != indent:
            raise ConfigTextError(found + 1, "only lists of plain values can be edited safely")
        items.append(_scalar(literal, found + 1))
        position = end = found + 1


def _split_comment(rest: str, line: int) -> tuple[str, str]:
    """The value as written and the comment after it (with its ``#``)."""
    if rest[:1] in ('"', "'"):
        quote = rest[0]
        position = 1
        while position < len(rest):
            if quote == '"' and rest[position] == "\\":
                position += 2
                continue
            if rest[position] == quote:
                if quote == "'" and rest[position : position + 2] == "''":
                    position += 2
                    continue
                break
            position += 1
        if position >= len(rest):
            raise ConfigTextError(line, "a quoted value that does not end on its line")
        after = rest[position + 1 :].strip()
        if after and not after.startswith("#"):
            raise ConfigTextError(line, "something follows the quoted value")
        return rest[: position + 1], after
    if "\t" in rest:
        raise ConfigTextError(line, "a tab in the value; use spaces")
    if rest.startswith("#"):
        return "", rest
    cut = rest.find(" #")
    return (rest, "") if cut < 0 else (rest[:cut].rstrip(), rest[cut + 1 :])


def _scalar(literal: str, line: int) -> Any:
    if literal[:1] == '"':
        try:
            return json.loads(literal, strict=False)
        except ValueError as error:
            raise ConfigTextError(line, "a double-quoted value with an escape that JSON does not know") from error
    if literal[:1] == "'":
        return literal[1:-1].replace("''", "'")
    if literal[:1] and literal[0] in "&*!|>%@`{[]},?":
        raise ConfigTextError(line, "anchors, tags, flow style and values over several lines cannot be edited safely")
    if ": " in literal or literal.endswith(":") or literal.startswith("- "):
        raise ConfigTextError(line, "a plain value that would have to be quoted")
    return _resolve(literal)


def _resolve(literal: str) -> Any:
    lowered = literal.lower()
    if lowered in _NULL:
        return None
    if lowered in _TRUE:
        return True
    if lowered in _FALSE:
        return False
    if _INT.match(literal):
        return int(literal)
    if _FLOAT.match(literal):
        return float(literal)
    return literal


def _edit(
    lines: list[str],
    start: int,
    end: int,
    entries: list[_Entry],
    wanted: Mapping[str, Any],
    indent: int,
    ending: str,
) -> list[str]:
    out: list[str] = []
    position = start
    for entry in entries:
        out.extend(lines[position : entry.start])
        position = entry.end
        if entry.key not in wanted:
            continue
        value = wanted[entry.key]
        if _same(entry.value, value):
            out.extend(lines[entry.start : entry.end])
        elif entry.children is not None and isinstance(value, Mapping) and value:
            child_indent = entry.children[0].indent
            out.append(lines[entry.start])
            out.extend(_edit(lines, entry.start + 1, entry.end, entry.children, value, child_indent, ending))
        else:
            rendered = _render(entry.key, value, indent)
            if entry.comment and len(rendered) == 1:
                rendered[0] += "  " + entry.comment
            out.extend(line + ending for line in rendered)
    out.extend(lines[position:end])
    present = {entry.key for entry in entries}
    for key, value in wanted.items():
        if key not in present:
            out.extend(line + ending for line in _render(key, value, indent))
    return out


def _render_mapping(mapping: Mapping[str, Any], indent: int) -> list[str]:
    return [line for key, value in mapping.items() for line in _render(key, value, indent)]


def _render(key: str, value: Any, indent: int) -> list[str]:
    lead = " " * indent
    if not _KEY.match(key + ":"):
        raise ConfigTextError(0, f"{key!r} cannot be a key of config.yaml")
    key = key if isinstance(_resolve(key), str) else json.dumps(key)
    if isinstance(value, Mapping):
        return [lead + key + ":", *_render_mapping(value, indent + 2)]
    if isinstance(value, (list, tuple)):
        if any(isinstance(item, (Mapping, list, tuple)) for item in value) or not value:
            raise ConfigTextError(0, f"{key} may hold a list of plain values only, with at least one")
        return [lead + key + ":", *(lead + "  - " + _literal(item) for item in value)]
    literal = _literal(value)
    return [lead + key + ":" + (" " + literal if literal else "")]


def _literal(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (int, float)):
        return repr(value)
    text = str(value)
    if _PLAIN.match(text) and isinstance(_resolve(text), str) and not text[0].isdigit():
        return text
    return json.dumps(text, ensure_ascii=False)


def _same(left: Any, right: Any) -> bool:
    if isinstance(left, Mapping) and isinstance(right, Mapping):
        return left.keys() == right.keys() and all(_same(left[key], right[key]) for key in left)
    if isinstance(left, (list, tuple)) and isinstance(right, (list, tuple)):
        return len(left) == len(right) and all(_same(one, other) for one, other in zip(left, right))
    return type(left) is type(right) and bool(left == right)


def _as_dict(entries: list[_Entry]) -> dict[str, Any]:
    return {entry.key: entry.value for entry in entries}


def _next_content(lines: list[str], start: int, limit: int) -> int | None:
    for number in range(start, limit):
        stripped = lines[number].strip()
        if stripped and not stripped.startswith("#"):
            return number
    return None


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip(" "))


def _is_item(line: str) -> bool:
    return line.strip() == "-" or line.strip().startswith("- ")
