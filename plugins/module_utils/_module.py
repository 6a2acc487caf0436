# SPDX-FileCopyrightText: The kmsops.fortanix_dsm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)

# This module util is PRIVATE to the collection. It can change at any time.

"""The shell that every module wears: argument groups, one error boundary, result keys, check mode."""

from __future__ import annotations

import gc
import ipaddress
import platform
import re
import socket
import typing as t
from dataclasses import dataclass

from ansible.module_utils.basic import AnsibleModule

from ._core import testimony
from ._errors import CommandFailed, DsmError, Reason, Refused, refuse_unless_accepted
from ._runner import LocalRunner, Operations, Runner

DEFAULT_KUBECONFIG = "/etc/kubernetes/admin.conf"
#: As ``requires_ansible`` in meta/runtime.yml says; Ansible itself only warns.
OLDEST_ANSIBLE = (2, 16)
HOST_ROLES = ["production", "dr", "spare", "rollback", "retired"]


def kubeconfig_spec(timeout: float = 120.0) -> dict[str, t.Any]:
    """Options of the doc fragment ``kubeconfig``."""
    return {
        "kubeconfig": {"type": "path", "default": DEFAULT_KUBECONFIG},
        "timeout": {"type": "float", "default": timeout},
    }


def accept_spec() -> dict[str, t.Any]:
    """Options of the doc fragment ``accept``."""
    return {"accept": {"type": "list", "elements": "str", "default": []}}


def confirmed_spec() -> dict[str, t.Any]:
    """Options of the doc fragment ``confirmed``."""
    return {
        "confirm": {"type": "str", "required": True},
        "host_role": {"type": "str", "choices": HOST_ROLES, "required": True},
        "expected_addresses": {"type": "list", "elements": "str", "default": []},
        "expected_serial": {"type": "str"},
        "run_id": {"type": "str"},
        "testimony": {"type": "dict"},
    }


@dataclass(frozen=True)
class HostIdentity:
    """What this host says it is.

    ``addresses`` leaves out the loopback interface, where shared service addresses live that say nothing about who this
    is; those are in ``on_loopback``.
    """

    name: str
    addresses: list[str]
    serial: str | None
    python: str
    on_loopback: tuple[str, ...] = ()

    @property
    def every_address(self) -> list[str]:
        """Everything that packets may be sent to and end here."""
        return [*self.addresses, *self.on_loopback]

    def as_dict(self) -> dict[str, t.Any]:
        return {"name": self.name, "addresses": self.addresses, "serial": self.serial, "python": self.python}


class Outcome:
    """What a module body returns.

    :param changed: whether the module changed, or in check mode would change, anything
    :param before: state that was read first; also the difference's left side
    :param after: state read at the end (predicted in check mode); also the difference's right side
    :param actions: commands that acted; those of the shell's runner when None
    """

    def __init__(
        self,
        changed: bool,
        before: t.Any = None,
        after: t.Any = None,
        actions: list[dict[str, t.Any]] | None = None,
        **returns: t.Any,
    ) -> None:
        self.changed = changed
        self.before = before
        self.after = after
        self.actions = actions
        self.returns = returns


class Shell:
    """What a module body sees of Ansible, and nothing more."""

    def __init__(
        self,
        params: dict[str, t.Any],
        check_mode: bool = False,
        runner: Runner | None = None,
        operations: Operations | None = None,
        warn: t.Callable[[str], None] | None = None,
    ) -> None:
        self.params = params
        self.check_mode = check_mode
        self.runner: Runner = runner if runner is not None else LocalRunner()
        self.operations = (
            operations
            if operations is not None
            else Operations(run_id=params.get("run_id"), actions=self.runner.actions)
        )
        self._warn = warn

    def warn(self, text: str) -> None:
        """A warning that Ansible shows to the person."""
        if self._warn is not None:
            self._warn(text)

    def host_identity(self) -> HostIdentity:
        """Read name, addresses and serial of this host now."""
        addresses, on_loopback = _addresses(self.runner)
        return HostIdentity(
            name=socket.gethostname(),
            addresses=addresses,
            serial=_serial(self.runner),
            python=platform.python_version(),
            on_loopback=tuple(on_loopback),
        )

    def require_confirmed_host(
        self, confirm: str, expected_addresses: t.Sequence[str] = (), expected_serial: str | None = None
    ) -> HostIdentity:
        """Law 5: re-read who this host is, right before acting.

        :param confirm: must equal the host's own name, letter by letter
        :param expected_addresses: all must be on this host (an address may carry a prefix length)
        :param expected_serial: must equal what ``dmidecode`` says [doc]; not compared when None
        :raises Refused: with every reason at once (code ``WRONG_HOST``)
        """
        host = self.host_identity()
        reasons = identity_reasons(host, confirm, expected_addresses, expected_serial)
        if reasons:
            raise Refused(
                f"This is not the host that was named, so nothing was done on {host.name}.",
                "WRONG_HOST",
                "Check the inventory alias, its ansible_host, delegate_to and the option confirm.",
                reasons=reasons,
                host=host.as_dict(),
            )
        return host


def identity_reasons(
    host: HostIdentity, confirm: str | None, expected_addresses: t.Sequence[str], expected_serial: str | None
) -> list[Reason]:
    """Why this may be the wrong host. Pure."""
    reasons = []
    if confirm != host.name:
        reasons.append(
            Reason(
                "CONFIRM_MISMATCH",
                f"confirm is {confirm!r}, but this host calls itself {host.name!r}.",
                "confirm names the host that this runs on. Was another one meant? Check the inventory alias and "
                "delegate_to before you change confirm.",
            )
        )
    mine = {_plain_address(address) for address in host.addresses}
    missing = [address for address in expected_addresses if _plain_address(address) not in mine]
    if missing:
        reasons.append(
            Reason(
                "ADDRESS_MISMATCH",
                f"this host lacks {', '.join(missing)}; it has {', '.join(host.addresses) or 'none readable'}.",
                "Does ansible_host of this alias lead to another machine? Correct the inventory.",
            )
        )
    if expected_serial and host.serial is None:
        reasons.append(
            Reason(
                "SERIAL_UNREADABLE",
                f"serial {expected_serial!r} is expected, but none could be read.",
                "Install dmidecode, or leave expected_serial out.",
            )
        )
    elif expected_serial and expected_serial != host.serial:
        reasons.append(
            Reason(
                "SERIAL_MISMATCH",
                f"serial {expected_serial!r} is expected, but this host has {host.serial!r}.",
                "This is another machine: wrong host, or hardware that was replaced. Correct the inventory if it was.",
            )
        )
    return reasons


def require_testimony(params: t.Mapping[str, t.Any]) -> testimony.Testimony:
    """What others said in this run.

    :raises Refused: the module was called without its action plugin (code ``TESTIMONY_MISSING``)
    """
    heard = testimony.read(params.get("testimony"))
    if heard is None:
        raise Refused(
            "This module does nothing without the testimony that its action plugin gathers.",
            "TESTIMONY_MISSING",
            "Call it by its full name kmsops.fortanix_dsm.<module> in a play or with ansible, not as a script.",
        )
    return heard


class TellingModule(AnsibleModule):
    """Ansible's module, but wrong arguments are refused like everything else: with a code, all reasons and a remedy."""

    def fail_json(self, msg: str, **result: t.Any) -> None:
        if "error_code" not in result:
            checked = getattr(self, "validation_result", None)
            wrong = list(getattr(checked, "error_messages", ())) or [msg]
            reasons = [Reason("BAD_ARGUMENT", text, _remedy_of_argument(text)) for text in wrong]
            told = Refused("Nothing was done, the arguments are wrong.", "BAD_ARGUMENTS", reasons=reasons).as_result()
            msg = told.pop("msg")
            result.update(told, changed=False, actions=[])
        super().fail_json(msg, **result)


def _remedy_of_argument(text: str) -> str:
    if re.search(r"missing required arguments:.*\bconfirm\b", text):
        return "Give confirm: the name that the host meant calls itself by (hostname). It says that you mean this one."
    return "See ansible-doc for the options of this module."


def controller_reasons(version: str | None) -> list[Reason]:
    """Why the ansible-core that runs this is not supported. Pure. What it does not say (0.0) is not known to be old."""
    match = re.match(r"(?!0\.0\b)(\d+)\.(\d+)", version or "")
    if match is None or (int(match.group(1)), int(match.group(2))) >= OLDEST_ANSIBLE:
        return []
    oldest = ".".join(map(str, OLDEST_ANSIBLE))
    return [
        Reason(
            "ANSIBLE_TOO_OLD",
            f"ansible-core {version} runs this; this collection needs {oldest} or newer.",
            f"Run it with ansible-core {oldest} or newer, which can be had by pip install in a virtual environment.",
        )
    ]


def run_module(
    argument_spec: dict[str, t.Any], body: t.Callable[[Shell], Outcome], **ansible_module_kwargs: t.Any
) -> None:
    """Run a module body inside the one error boundary, and end the process as Ansible wants it.

    Every :class:`DsmError` fails with its code, reasons and remedy. Anything else is a defect of this collection: it
    fails with code ``INTERNAL`` and no traceback in the message.
    """
    # What is read of 10 000 backups all stays: looking through it for cycles again and again is a fifth of the time.
    gc.set_threshold(200_000)
    ansible_module_kwargs.setdefault("supports_check_mode", True)
    module = TellingModule(argument_spec=argument_spec, **ansible_module_kwargs)
    shell = Shell(dict(module.params), module.check_mode, warn=module.warn)
    try:
        refuse_unless_accepted(controller_reasons(getattr(module, "ansible_version", None)), (), "Nothing was done.")
        result = result_of(body(shell), shell)
    except DsmError as error:
        told = error
    except PermissionError as error:
        told = Refused(
            f"No permission for {error.filename or 'what this module reads'}.",
            "NOT_PERMITTED",
            "Run this as root: become: true.",
            where=_where(error),
        )
    except Exception as error:  # the boundary: nothing may leave a module as a traceback
        told = DsmError(
            f"Unexpected {type(error).__name__} in this module; see details.",
            "INTERNAL",
            "This is a defect of the collection. Report it with the details.",
            exception=type(error).__name__,
            where=_where(error),
        )
    else:
        module.exit_json(**result)
        return
    module.fail_json(changed=bool(shell.runner.actions), actions=shell.runner.actions, **told.as_result())


def result_of(outcome: Outcome, shell: Shell) -> dict[str, t.Any]:
    """Result keys of an outcome. ``diff`` is made of the same objects as ``before`` and ``after``."""
    result = dict(outcome.returns)
    result["changed"] = outcome.changed
    result["actions"] = shell.runner.actions if outcome.actions is None else outcome.actions
    result["before"] = outcome.before
    result["after"] = outcome.after
    if outcome.before is not None or outcome.after is not None:
        result["diff"] = {
            "before": outcome.before if outcome.before is not None else {},
            "after": outcome.after if outcome.after is not None else {},
        }
    return result


def _where(error: BaseException) -> str:
    """File and line of the innermost frame. Values, which might be secrets, stay out."""
    trace = error.__traceback__
    place = ""
    while trace is not None:
        place = f"{trace.tb_frame.f_code.co_filename.rsplit('/', 1)[-1]}:{trace.tb_lineno}"
        trace = trace.tb_next
    return place


def _plain_address(address: str) -> str:
    try:
        return str(ipaddress.ip_interface(address.strip()).ip)
    except ValueError:
        return address.strip()


def _addresses(runner: Runner) -> tuple[list[str], list[str]]:
    """Addresses of all interfaces but loopback, and those that loopback carries beside its own.

    From ``ip -o addr show``, whose text is the same in every version.
    """
    text = runner.run(["ip", "-o", "addr", "show"], timeout=10, reading=True).stdout
    addresses: list[str] = []
    on_loopback: list[str] = []
    for line in text.splitlines():
        words = line.split()
        if len(words) < 4 or words[2] not in ("inet", "inet6"):
            continue
        address = words[3].split("/")[0]
        parsed = ipaddress.ip_address(address)
        found = on_loopback if words[1] == "lo" else addresses
        if not parsed.is_link_local and not parsed.is_loopback and address not in found:
            found.append(address)
    return addresses, on_loopback


def _serial(runner: Runner) -> str | None:
    """``dmidecode -s system-serial-number`` [doc]; None when the package is missing or nothing useful is answered."""
    try:
        done = runner.run(["dmidecode", "-s", "system-serial-number"], timeout=10, check=False, reading=True)
    except CommandFailed:
        return None
    lines = [line.strip() for line in done.stdout.splitlines() if line.strip() and not line.startswith("#")]
    return lines[-1] if done.rc == 0 and lines else None
