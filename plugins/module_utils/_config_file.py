# SPDX-FileCopyrightText: The kmsops.fortanix_dsm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The vendor's ``config.yaml`` on a node, with a note of what is written but not yet applied.

PRIVATE to the collection.
"""

from __future__ import annotations

import os
import stat
import time

from ._errors import Refused, Unreadable
from ._files import read_json, remove, write_atomic, write_json


class ConfigFile:
    """One file, followed through symbolic links. ``mode`` is known after :meth:`read`."""

    def __init__(self, path: str, state_dir: str) -> None:
        self.path = os.path.realpath(path)
        self.previous = self.path + ".previous"
        self.mode = 0
        self._note = os.path.join(state_dir, "config_pending.json")

    def read(self) -> str:
        """The whole text. Raises :class:`Refused` when there is no file, :class:`Unreadable` when it is no text."""
        try:
            with open(self.path, "rb") as handle:
                self.mode = stat.S_IMODE(os.fstat(handle.fileno()).st_mode)
                return handle.read().decode("utf-8")
        except FileNotFoundError as error:
            raise Refused(
                f"There is no file {self.path} on this host.",
                "CONFIG_MISSING",
                "Give path the config.yaml that this cluster was created with. It is not made here: only the vendor"
                " knows everything that belongs into it.",
            ) from error
        except (OSError, UnicodeDecodeError) as error:
            raise Unreadable(
                f"{self.path} cannot be read as text: {error}.",
                "CONFIG_UNREADABLE",
                "Look at it: it must be a file of UTF-8 text. Take it from escrow again.",
            ) from error

    def replace(self, old: str, new: str) -> None:
        """Writes ``new`` with mode 0600; ``old`` stays beside it when it differs."""
        if new != old:
            write_atomic(self.previous, old.encode())
        write_atomic(self.path, new.encode())
        self.mode = 0o600

    def pending_since(self) -> str:
        """When an earlier run noted that this file has to be applied (UTC) and never got to the end; empty if none."""
        return str((read_json(self._note) or {}).get(self.path, ""))

    def note_pending(self, again: bool) -> None:
        """Notes, before the file is written, that it will have to be applied. ``again``: a new text begins anew."""
        note = read_json(self._note) or {}
        if again or self.path not in note:
            note[self.path] = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
            write_json(self._note, note)

    def note_applied(self) -> None:
        """Nothing is left to apply."""
        note = read_json(self._note) or {}
        note.pop(self.path, None)
        if note:
            write_json(self._note, note)
        else:
            remove(self._note)
