"""``python -m launch CONFIG``, ``python -m launch check CONFIG``, ``python -m launch status RUN_DIR``."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from pretrain.command import told
from pretrain.errors import LaunchError, UserError
from pretrain.exit_codes import DONE, USER
from pretrain.screen import on_screen, outlive_screen, refuse

from .arguments import run_parser, status_parser
from .ends import command_of


def main(arguments: list[str] | None = None) -> int:
    """Returns one of ``pretrain.exit_codes``; a check that found something returns ``USER``."""
    given = sys.argv[1:] if arguments is None else arguments
    try:
        if given[:1] == ["status"]:
            return _status(status_parser().parse_args(given[1:]))
        check = given[:1] == ["check"]
        options = run_parser().parse_intermixed_args(given[1:] if check else given)
        if check or options.check:
            return _check(options)
        # A Slurm job's own command line is not the one that submitted it.
        command = "" if options.slurm else command_of(given)
        return _dry_run(options) if options.dry_run else _run(options, command)
    except UserError as error:
        return refuse(error)


def _status(options: argparse.Namespace) -> int:
    from .status import report, status_of

    status = status_of(Path(options.run))
    print(json.dumps(status) if options.json else report(status), flush=True)
    return DONE


def _dry_run(options: argparse.Namespace) -> int:
    from pretrain.lookup import require_found

    from . import slurm
    from .prepare import batch_of, prepare
    from .starts import start_of

    prepared = prepare(options)
    require_found(prepared.config)  # as every rank will; imports torch, which a start leaves to the ranks
    if prepared.submits:
        script = slurm.render(batch_of(options, prepared))
        print(json.dumps({"script": script}) if options.json else script, end="\n" if options.json else "")
        return DONE
    start = start_of(prepared.job)
    print(json.dumps(vars(start)) if options.json else start.render(), end="\n" if options.json else "")
    return DONE


def _check(options: argparse.Namespace) -> int:
    from . import preflight
    from .prepare import prepare

    prepared = prepare(options)
    if prepared.submits:
        raise LaunchError(
            "a check needs the hosts, expected to run inside a Slurm job: "
            f"salloc --nodes N {told('launch', 'check', 'CONFIG', '--slurm', '--gpus-per-node', 'N')}; or submit with "
            "--preflight"
        )
    findings = preflight.of(prepared.config, prepared.job, prepared.remote)
    print(json.dumps(preflight.to_json(findings)) if options.json else preflight.table(findings), flush=True)
    return DONE if all(finding.good for finding in findings) else USER


def _run(options: argparse.Namespace, command: str) -> int:
    from . import slurm
    from .prepare import batch_of, policy_of, prepare, require_port, watch_of
    from .signals import Signals
    from .supervisor import Supervisor

    outlive_screen()
    prepared = prepare(options)
    if prepared.submits:
        number = slurm.submit(slurm.render(batch_of(options, prepared)))
        gpus = prepared.config.train.device != "cpu"
        what = " (a GPU per rank; on a cluster without it waits for ever: give train.device=cpu)" if gpus else ""
        print(json.dumps({"job": number}) if options.json else f"submitted job {number}{what}", flush=True)
        return DONE
    require_port(prepared.job)
    signals = Signals()
    signals.install()
    if options.preflight and _check(options) != DONE:
        return USER
    supervisor = Supervisor(
        prepared.job,
        prepared.config,
        prepared.remote,
        policy_of(options),
        watch_of(options, prepared.config),
        signals,
        command=command,
    )
    supervisor.require_hosts()
    code = supervisor.run()
    if options.json:
        print(json.dumps({"code": code, "restarts": supervisor.number, "run": str(supervisor.folder)}), flush=True)
    return code


if __name__ == "__main__":
    sys.exit(on_screen(main))
