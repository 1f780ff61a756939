"""Bad input ends in one clear line on stderr, exit code 2, and nothing written; through the program's entry point."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from pretrain.config import config_from_dict
from pretrain.run import _open_data
from pretrain.run_folder import RunFolder
from tests.distributed import run_ranks
from tests.pretrain.attempts import Attempt, attempt_all, corpus_with_manifest, launch, write_run_file
from tests.pretrain.runs import settings, train_all, write_corpus

Case = tuple[str, tuple[str, ...], str]
"""Name, overrides, and what the line says; {} is the folder of the test."""

SETTINGS: list[Case] = [
    ("mistyped key", ("sparsity.densty=0.5",), "sparsity.densty is not a known key (did you mean 'density'?)"),
    ("mistyped section", ("trian.steps=5",), "trian is not a known section (did you mean 'train'?)"),
    ("key without its section", ("zero_stage=1",), "zero_stage is not a known section (did you mean 'parallel.zero_"),
    ("density 0", ("sparsity.density=0",), "sparsity.density is 0.0, expected a fraction in (0, 1], such as 0.25"),
    ("density below 0", ("sparsity.density=-0.25",), "sparsity.density is -0.25, expected a fraction in (0, 1]"),
    ("density above 1", ("sparsity.density=1.01",), "sparsity.density is 1.01, expected a fraction in (0, 1]"),
    ("density in percent", ("sparsity.density=25%",), "sparsity.density is '25%' (str), expected a finite number"),
    ("density not a number", ("sparsity.density=.nan",), "sparsity.density is nan (float), expected a finite number"),
    ("block across", ("sparsity.block=[1,5]",), "sparsity.block is [1, 5], expected sides that divide every sparse"),
    ("block down", ("sparsity.block=[7,1]",), "sparsity.block is [7, 1], expected sides that divide every sparse"),
    ("ZeRO 0", ("parallel.zero_stage=0",), "parallel.zero_stage is 0, expected 1, 2 or 3"),
    ("ZeRO 4", ("parallel.zero_stage=4",), "parallel.zero_stage is 4, expected 1, 2 or 3"),
    ("global batch", ("train.micro_batch_size=3",), "train.global_batch_size is 8, expected a multiple of"),
    ("more GPUs than there are", ("train.device=cuda",), "train.device is cuda, and "),
    (
        "mistyped DeepSpeed key",
        ("deepspeed.zero_optimization.overlap_com=true",),
        ".overlap_com is not a known key (did you mean 'overlap_comm'?)",
    ),
    (
        "DeepSpeed value of another type",
        ("deepspeed.zero_optimization.overlap_comm=maybe",),
        "overlap_comm is 'maybe', DeepSpeed says: ",
    ),
    (
        "another section that DeepSpeed checks",
        ("deepspeed.comms_logger.enabled=maybe",),
        "deepspeed.comms_logger.enabled is 'maybe', DeepSpeed says: ",
    ),
    (
        "another kind inside a DeepSpeed section",
        ("deepspeed.timers.throughput=1",),
        "the section deepspeed is refused, DeepSpeed says: TypeError: ",
    ),
    (
        "mistyped DeepSpeed section",
        ("deepspeed.zero_optimisation.overlap_comm=true",),
        "deepspeed.zero_optimisation is not a known key of",
    ),
    ("no override", ("train.steps",), "override 'train.steps' is malformed, expected section.key=value"),
]

DATA: list[Case] = [
    ("no corpus", ("data.train={}/nowhere",), "corpus file {}/nowhere.idx does not exist"),
    ("no validation corpus", ("data.validation={}/nowhere",), "corpus file {}/nowhere.idx does not exist"),
    ("truncated bin", ("data.train={}/cut_bin",), "{}/cut_bin.bin is truncated: "),
    ("truncated idx", ("data.train={}/cut_idx",), "{}/cut_idx.idx is truncated: "),
    ("truncated header", ("data.train={}/cut_header",), "{}/cut_header.idx is truncated: 20 bytes"),
    ("empty corpus", ("data.train={}/empty",), "corpus {}/empty holds no tokens"),
    ("empty file", ("data.train={}/empty_file",), "{}/empty_file.idx is not an index"),
    ("too short for one sample", ("data.train={}/short",), "corpus {}/short has 12 tokens, one sample needs 17"),
    (
        "a file of a corpus",
        ("data.train={}/corpus.bin",),
        ", and this is a file of the corpus {}/corpus: leave out .bi",
    ),
    ("a folder as corpus", ("data.train={}",), "corpus file {}.idx does not exist"),
    ("no tokenizer", ("data.tokenizer={}/nowhere.model",), "data.tokenizer {}/nowhere.model does not exist"),
    (
        "vocabulary of the data is larger",
        ("data.train={}/large_vocabulary",),
        "the data has a vocabulary of 128, the model of 97; set the model's vocab_size to 128",
    ),
    (
        "vocabulary of the validation data is larger",
        ("data.validation={}/large_vocabulary",),
        "the data has a vocabulary of 128, the model of 97",
    ),
    ("ids beyond the model's vocabulary", ("model.vocab_size=20",), "corpus {}/corpus holds token ids from "),
    (
        "tokenizer of other data",
        ("data.train={}/known", "data.tokenizer={}/other.model"),
        "; preprocess with the model's tokenizer",
    ),
]

FOLDERS: list[Case] = [
    ("holds metrics of nobody", ("train.output_dir={}/orphan",), "{}/orphan has metrics.jsonl but no config.yaml, so"),
    ("is a file", ("train.output_dir={}/notes/todo.txt",), "output folder {}/notes/todo.txt is a file"),
    ("lies below a file", ("train.output_dir={}/notes/todo.txt/run",), "/run cannot be written (Not a directory: "),
    (
        "holds another run",
        ("optimizer.lr=0.5", "sparsity.density=0.5"),
        "already holds another run (optimizer.lr: 0.01 -> 0.5; sparsity.density: 0.29 -> 0.5); to go on with it: ",
    ),
    ("holds a run, resume=never", ("checkpoint.resume=never",), "already holds a run and checkpoint.resume is never"),
    ("holds a foreign config.yaml", ("train.output_dir={}/foreign",), "{}/foreign already holds another run"),
    (
        "holds a list as config.yaml",
        ("train.output_dir={}/list",),
        "{}/list/config.yaml holds list, expected a mapping of",
    ),
    ("holds a torn config.yaml", ("train.output_dir={}/torn",), "{}/torn/config.yaml line 4 is no valid YAML: "),
]


def arrange(folder: Path) -> None:
    """Everything the cases above stumble over."""
    corpus = write_corpus(folder / "corpus", tokens=2000)
    for name, suffix, keep in (("cut_bin", "bin", -3), ("cut_idx", "idx", -5), ("cut_header", "idx", 20)):
        for kind in ("bin", "idx"):
            shutil.copy(f"{corpus}.{kind}", folder / f"{name}.{kind}")
        path = folder / f"{name}.{suffix}"
        path.write_bytes(path.read_bytes()[:keep])
    write_corpus(folder / "empty", tokens=0)
    write_corpus(folder / "short", tokens=12)
    for kind in ("bin", "idx"):
        (folder / f"empty_file.{kind}").touch()
    corpus_with_manifest(folder / "large_vocabulary", vocabulary=128)
    corpus_with_manifest(folder / "known", tokenizer=b"this one")
    (folder / "other.model").write_bytes(b"another one")
    for name, file, text in (
        ("notes", "todo.txt", "do not overwrite\n"),
        ("orphan", "metrics.jsonl", "{}\n"),
        ("foreign", "config.yaml", "learning_rate: 0.1\nlayers: 3\n"),
        ("list", "config.yaml", "- 1\n- 2\n"),
        ("torn", "config.yaml", "model:\n  vocab_size: 97\n  hidden_si: [24\n"),
    ):
        (folder / name).mkdir()
        (folder / name / file).write_text(text)


def refuse(job: dict[str, Any], cases: list[tuple[list[str], str]]) -> list[Attempt]:
    """Train ``job``, so that its folder holds a run, and then make every attempt. Runs in the ranks."""
    train_all([job])
    return attempt_all(cases)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("bad")


@pytest.fixture(scope="module")
def attempts(folder: Path) -> dict[str, Attempt]:
    """All cases in one process: what takes time is the start of one."""
    arrange(folder)
    corpus = str(folder / "corpus")
    changes = {
        "train__steps": 2,
        "sparsity__update_interval": 0,
        "optimizer__warmup_steps": 0,
        "evaluation__interval": 0,
    }
    file = write_run_file(folder / "run.yaml", corpus, folder / "run", **changes)
    cases, names = [], []
    for name, overrides, _ in (*SETTINGS, *DATA, *FOLDERS):
        output = [] if (name, overrides, _) in FOLDERS else [f"train.output_dir={folder}/new/{len(cases)}"]
        cases.append(([file, *output, *(text.format(folder) for text in overrides)], str(folder)))
        names.append(name)
    job = settings(corpus, folder / "run", **changes)
    return dict(zip(names, run_ranks(refuse, 1, job, cases, timeout=240)[0], strict=True))


@pytest.mark.parametrize(("name", "expected"), [(name, said) for name, _, said in (*SETTINGS, *DATA, *FOLDERS)])
def test_one_line_and_nothing_written(attempts: dict[str, Attempt], folder: Path, name: str, expected: str) -> None:
    assert expected.format(folder) in attempts[name].sole_error()


def test_all_problems_of_all_sections_at_once(folder: Path) -> None:
    """Through a process of its own: exit code, empty stdout, and nothing on stderr but the problems."""
    file = write_run_file(folder / "many.yaml", str(folder / "corpus"), folder / "new")
    overrides = [
        "sparsity.densty=0.5",
        "sparsity.density=2",
        "parallel.zero_stage=4",
        "train.steps=-1",
        "optimizr.lr=1",
    ]
    (end,) = launch(1, [file, *overrides])
    assert (end.returncode, end.stdout) == (2, "")
    lines = end.stderr.splitlines()
    assert all(line.startswith("error: ") for line in lines), end.stderr
    for expected in ("did you mean 'density'", "density is 2", "zero_stage is 4", "train.steps is -1", "'optimizer'"):
        assert sum(expected in line for line in lines) == 1, end.stderr


def test_a_run_file_that_is_missing_names_the_nearest(folder: Path) -> None:
    write_run_file(folder / "quickstart.yaml", "corpus", folder / "new")
    (end,) = launch(1, [str(folder / "quikstart.yaml")])
    assert (end.returncode, end.stdout) == (2, "")
    assert end.stderr == (
        f"error: {folder}/quikstart.yaml does not exist, expected a YAML run file (did you mean 'quickstart.yaml'?)\n"
    )


def test_two_ranks_print_one_line_and_both_end_with_2(folder: Path) -> None:
    """The batch divides at one rank, not at the two that were really started."""
    corpus = write_corpus(folder / "two", tokens=2000)
    file = write_run_file(folder / "two.yaml", corpus, folder / "two ranks", train__global_batch_size=9)
    first, second = launch(2, [file])
    assert (first.returncode, second.returncode) == (2, 2), (first.stderr, second.stderr)
    assert first.stderr == (
        "error: train.global_batch_size is 9, expected a multiple of micro_batch_size 1 x 2 data-parallel ranks = 2; "
        "set global_batch_size to 8 or 10\n"
    )
    assert (first.stdout, second.stdout, second.stderr) == ("", "", "")
    assert not (folder / "two ranks").exists()


def test_a_tokenizer_that_nothing_can_be_compared_with_is_told(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    corpus_with_manifest(folder / "told", tokenizer=b"another one")
    (folder / "made.model").write_bytes(b"another one")
    corpora = {"train": f"{folder}/corpus", "validation": f"{folder}/told", "tokenizer": f"{folder}/made.model"}
    given = settings(f"{folder}/corpus", folder / "never begins")
    _open_data(config_from_dict({**given, "data": {**given["data"], **corpora}}), RunFolder(folder / "never begins"))
    (said,) = [record.getMessage() for record in caplog.records if record.name == "smet"]
    assert said == f"smet: note: {folder}/corpus: no manifest, so nothing tells whether data.tokenizer made it"
