"""Everything that can be checked before a cluster is touched: data, resume, folders, the plan of the run."""

from __future__ import annotations

import random
import string
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shoal.audit.chain import Chain
from shoal.coordinator.plan import RunPlan, TaskElsewhere, cursor_of
from shoal.data.augment import check as check_augmented
from shoal.data.order import Cursor
from shoal.data.sources import Sources, leave_out_bad, resolve
from shoal.errors import ConfigError, DataError
from shoal.job import Cost, Data, Job, by_value
from shoal.job.fields import recorded_values
from shoal.job.growth import grows_on_the_way
from shoal.job.steps import foreseen, positions_of, total_steps
from shoal.job.store import job_digest, save_job
from shoal.positions import Positions
from shoal.redaction import redact
from shoal.run_folder import RunFolder, check_name
from shoal.state.storage import Storage
from shoal.state.store import CheckpointInfo, CheckpointStore
from shoal.tracking.facts import environment_tags
from shoal.tracking.ledger import is_written, scan
from shoal.tracking.owner import owner
from shoal.tracking.prices import Tariff, tariff_of
from shoal.tracking.settings import DatasetEntry, RecordSettings
from shoal.tracking.ui import where_recorded

if TYPE_CHECKING:
    from shoal.launch.api import RunOptions
    from shoal.launch.cluster import Connection


@dataclass(frozen=True, slots=True)
class Prepared:
    """A run that is ready to start."""

    job: Job
    options: RunOptions
    folder: RunFolder
    sources: Sources
    tariff: Tariff
    total_steps: int
    digest: str
    start_from: CheckpointInfo | None
    continues: bool
    spans: tuple[tuple[int, int], ...]
    """What the steps up to `start_from` read, where the job alone does not say it."""

    @property
    def checkpoint_uri(self) -> str:
        path = self.job.checkpoints.path
        # The run id keeps runs apart that name the same place: each prunes only its own.
        return Storage(path).child(self.folder.run_id).uri if path else self._stored("checkpoints")

    @property
    def export_uri(self) -> str:
        return self._stored("model")

    @property
    def store(self) -> CheckpointStore:
        return CheckpointStore(self.checkpoint_uri)

    def _stored(self, what: str) -> str:
        base = self.options.storage_uri
        return Storage(base).child(self.folder.run_id).child(what).uri if base else str(self.folder.path / what)

    def plan(self, connection: Connection) -> RunPlan:
        """The plan for the coordinator."""
        return RunPlan(
            run_id=self.folder.run_id,
            folder=self.folder.path,
            job=replace(self.job, task=TaskElsewhere(self.job.task), data=_passed_on(self.job.data)),
            job_blob=by_value.dumps(self.job),
            job_digest=self.digest,
            train=self.sources.train,
            validation=self.sources.validation,
            total_steps=self.total_steps,
            checkpoint_uri=self.checkpoint_uri,
            export_uri=self.export_uri,
            start_from=self.start_from,
            continues=self.continues,
            record=None if self.options.scratch else self.record_settings(),
            node_id=connection.node_id,
            tariff=self.tariff,
            driver_silence_s=self.options.driver_silence_s,
            if_detached=self.options.if_detached,
            until_step=self.options.until_step,
            replay=self.options.replay,
            pool=self.options.pool,
            divergence=self.options.divergence,
            spans=self.spans,
            log_format=self.options.log_format,
        )

    def record_settings(self) -> RecordSettings:
        """What the record says about the run as a whole."""
        tags = environment_tags(
            Path.cwd(),
            command=" ".join([Path(sys.argv[0]).name, *sys.argv[1:]]),
            engine=_engine(self.job),
            data_digest=self.sources.train.digest,
        )
        if left := self._left_out():
            tags["shoal.data_left_out"] = f"{left} samples in row groups that cannot be read"
        tags |= {"shoal.run_id": self.folder.run_id, "shoal.job_digest": self.digest}
        if self.start_from and not self.continues:
            tags["shoal.forked_from"] = self.start_from.uri
        trial = self.options.trial
        if trial is not None:
            tags |= trial.tags
        return RecordSettings(
            runs=self.folder.root,
            tracking_uri=self.options.tracking_uri or "",
            experiment=(trial and trial.experiment) or self.job.name,
            run_name=self.folder.run_id,
            params=recorded_values(self.job),
            tags=tags,
            trial=trial,
            dataset=DatasetEntry(
                name=_named(self.job.data), digest=self.sources.train.digest, source=self.sources.train.uri
            ),
        )

    def _left_out(self) -> int:
        """Samples of row groups that a list beside the data leaves out (`data.skipping`)."""
        return sum(e.rows for catalog in self.sources.train.catalogs for e in catalog.skipped)

    def record_link(self) -> str:
        """Where the record is to be looked at."""
        return where_recorded(self.folder)

    def introduction(self, connection: Connection) -> Mapping[str, Any]:
        """What a display shows first."""
        return {
            "run_id": self.folder.run_id,
            "folder": str(self.folder.path),
            "job": self.job.name,
            "engine": _engine(self.job),
            "workers": f"{self.job.workers.min}..{self.job.workers.max}",
            "total_steps": foreseen(self.total_steps),
            "from_step": self.start_from.step if self.start_from else 0,
            "samples": self.sources.train.samples,
            "validation_samples": self.sources.validation.samples if self.sources.validation else 0,
            "data": redact(self.sources.train.uri),
            "data_digest": self.sources.train.digest,
            "left_out": self._left_out(),
            "cluster": "local" if connection.local else connection.address,
            "record": self.record_link(),
        }


def prepare(job: Job, options: RunOptions) -> Prepared:
    """Resolve and check everything, make the run folder. Raises ConfigError, DataError, CheckpointError."""
    root = options.runs_dir.absolute()
    if job.data.on_bad == "skip" and options.resume is None and options.scratch is None:
        leave_out_bad(job.data, root, tuple(job.task.columns))
    sources = resolve(job.data, root, tuple(job.task.columns))
    job.task.check_data({c.name: c.shape for c in sources.train.columns}, sources.train.metadata)
    check_augmented(job, sources.train.columns)
    total = total_steps(job, sources.train.samples)
    _enough(job, sources, positions_of(job, total))
    tariff = tariff_of(job.cost if options.scratch is None else Cost(), job.workers)  # to verify needs no prices
    digest = job_digest(job)
    if options.resume is None:
        place = options.scratch or root
        folder, start = new_folder(place, options.name or fresh_name(job.name)), options.start_from
        continues = False
        spans = spans_of(job, options.replay, start.step) if options.replay is not None and start is not None else ()
    else:
        old = find_run(root, options.resume)
        continues = options.fork_at is None and old.read().get("job_digest") == digest
        if continues:
            _not_running(old)
        start, same_order = _start_from(job, old, sources, total, options)
        spans = spans_of(job, old.ledger, start.step)
        continues = continues and same_order
        folder = old if continues else new_folder(root, options.name or fresh_name(job.name))
    if not continues:
        folder.update(
            run_id=folder.run_id, name=job.name, created=time.time(), status="starting", job_digest=digest,
            total_steps=foreseen(total), positions=spans or positions_of(job, total).spans,
            forked_from=start.uri if start else None,
        )  # fmt: skip
    ready = Prepared(job, options, folder, sources, tariff, total, digest, start, continues, spans)
    ready.folder.update(checkpoint_uri=ready.checkpoint_uri, status="starting", owner=owner())
    save_job(folder, job, options.recipe, options.overrides)
    return ready


def _passed_on(data: Data) -> Data:
    """`data` for processes that do not run the user's transforms: the catalogs carry these, pickled."""
    return replace(data, transforms=(), columns=())


def _enough(job: Job, sources: Sources, positions: Positions) -> None:
    """Raise ConfigError if a step would read a sample twice."""
    if grows_on_the_way(job):
        positions = Positions.even(job.batch.sizes[-1], positions.steps)  # the worst that may come
    if sources.train.samples < positions.most:
        largest = job.batch.sizes[-1]
        asked = f"batch.size={largest}" if largest == job.batch.size else f"a batch of {largest} by batch.growth"
        if positions.most > largest and job.data.selection is not None:
            asked += f" with Selection.pool={job.data.selection.pool:g}, {positions.most} candidates a step,"
        raise ConfigError(
            f"{asked} is more than the {sources.train.samples} samples of {sources.train.uri}, so a step would hold a "
            f"sample twice; lower it or bring more data"
        )
    train = sources.train
    mixture = train.mixture(job.data, seed=job.seed, block=job.batch.size, total=positions.total)
    if mixture is not None and (found := train.repeats(mixture, positions)) is not None:
        name, step, count = found
        has = train.catalogs[train.names.index(name)].samples
        raise ConfigError(
            f"step {step} would take {count} samples of the source {name!r}, which has {has}, and so hold one twice; "
            f"lower its weight or batch.size, or bring more of it"
        )


def new_folder(root: Path, name: str) -> RunFolder:
    """Make the folder of a new run, in `root` and nowhere else."""
    check_name(name, "--name")
    folder = RunFolder(root / name)
    try:
        folder.path.mkdir(parents=True)
    except FileExistsError:
        raise ConfigError(
            f"{folder.path} exists already; choose another --name, or continue it: shoal resume {name}"
        ) from None
    except OSError as error:
        raise ConfigError(
            f"cannot make the run folder {folder.path}: {error}; choose another place with --runs"
        ) from None
    return folder


def find_run(root: Path, run: str) -> RunFolder:
    """The folder of a run, given its id or its path. ConfigError if there is none."""
    path = Path(run)
    folder = RunFolder(path.absolute() if path.is_dir() else root / run)
    folder.read()
    return folder


def _not_running(folder: RunFolder) -> None:
    if is_written(folder.ledger):
        raise ConfigError(
            f"run {folder.run_id} is still being trained by another process (it holds {folder.ledger}); follow it with "
            f"`shoal attach {folder.run_id}`, or end it with `shoal stop {folder.run_id}` and resume then"
        )


def _start_from(
    job: Job, folder: RunFolder, sources: Sources, total: int, options: RunOptions
) -> tuple[CheckpointInfo, bool]:
    """The run's last checkpoint, or that of `fork_at`, and whether the data go on as they did; if not, and unless
    `new_data`, an error."""
    uri = folder.read().get("checkpoint_uri") or str(folder.checkpoints)
    store = CheckpointStore(uri)
    at = options.fork_at
    latest = store.latest() if at is None else next((info for info in store.list() if info.step == at), None)
    if latest is None:
        which = "" if at is None else f" of step {at}"
        raise ConfigError(f"run {folder.run_id} has no checkpoint{which} in {uri} to continue from; start it anew")
    if latest.step >= total:
        raise ConfigError(
            f"run {folder.run_id} has done {latest.step} of {total} steps, its whole budget; give it more, for example "
            f"--set budget.steps={2 * latest.step}"
        )
    cursor = Cursor.from_json(store.open(latest.uri).cursor)
    spans = spans_of(job, folder.ledger, latest.step)
    now = cursor_of(job, sources.train, latest.step, Positions(spans, total) if spans else positions_of(job, total))
    try:
        cursor.check(sources.train, now)
        if cursor.position != now.position:
            raise DataError(
                f"the data order of {latest.uri} stands at sample {cursor.position}, but step {latest.step} of this "
                f"job is at {now.position}; keep the batch.size that it had, {cursor.position / latest.step:g} samples "
                f"a step"
            )
    except DataError as error:
        if options.new_data:
            return latest, False
        raise DataError(f"{error}. To go on all the same, in a new run: --new-data") from None
    return latest, True


def spans_of(job: Job, ledger: Path, step: int) -> tuple[tuple[int, int], ...]:
    """As in `Positions`: what the steps up to `step` of a run read, by its ledger; nothing where the job says it."""
    if not grows_on_the_way(job):
        return ()
    found = Chain().add(entry for entry, _ in scan(ledger)).positions
    return tuple(span for span in found.spans if span[0] <= max(1, step)) if found is not None else ()


def fresh_name(job: str) -> str:
    """`job`, date, time and four letters."""
    letters = "".join(random.SystemRandom().choices(string.ascii_lowercase + string.digits, k=4))
    return f"{job}-{time.strftime('%Y%m%d-%H%M%S')}-{letters}"


def _named(data: Data) -> str:
    return data.train or " + ".join(s.train for s in data.sources)


def _engine(job: Job) -> str:
    return f"zero-{job.engine.stage}" if job.engine.name == "zero" else job.engine.name
