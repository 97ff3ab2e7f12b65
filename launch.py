"""Trains, evaluates, draws samples, writes the report; the only file with flags.

  python launch.py --config=configs/quickstart.py --workdir=runs/quickstart
  python launch.py --config=configs/quickstart.py:smoke --workdir=/tmp/x --dry_run
  python launch.py --config=configs/quickstart.py --config.seed=1 --workdir=runs/seed1
  python launch.py --workdir=runs/seed1              # goes on with that run's config
  python launch.py --workdir=runs/seed1 --mode=report
  python launch.py --workdir=runs/seed1 --mode=sample --given="caption=big red heart"
  python launch.py --workdir=runs/seed1 --mode=evaluate --config.eval.num_examples=500
  python launch.py --mode=fuse --ingredients=runs/a,runs/b --workdir=runs/soup
  python launch.py --mode=compare --config=configs/study_fusion.py --workdir=runs/study

The same command goes on from where the workdir stopped. On several hosts, start it on
each with --distributed (see deploy/). Exit codes: deploy/README.md.
"""

import itertools
import os
import re
import sys
from functools import partial
from pathlib import Path

from absl import app, flags, logging
from ml_collections import config_flags

FLAGS = flags.FLAGS
MODES = ("train", "evaluate", "sample", "report", "fuse", "compare")

config_flags.DEFINE_config_file(
  "config", None, "A file of configs/, with :variant; --config.field=value overrides."
)
flags.DEFINE_string("workdir", None, "Folder of the run, shared by all processes.")
flags.DEFINE_enum("mode", "train", MODES, "Train ends with evaluate and report.")
flags.DEFINE_bool(
  "dry_run", False, "Print what would run, and its cost; write nothing."
)
flags.DEFINE_string(
  "data_dir", None, "Prepared data sets; default $MMGEN_DATA_DIR or <workdir>/data."
)
flags.DEFINE_multi_string(
  "given",
  [],
  "To sample: NAME=VALUE, of a modality (a text; the path of an image or a sound) or"
  " a label; again for more. Without: from test examples.",
)
flags.DEFINE_integer("count", 16, "To sample: how many.", lower_bound=1)
flags.DEFINE_list(
  "ingredients", [], "To fuse: workdirs (DIR or DIR:STEP) or .safetensors files."
)
flags.DEFINE_string("method", "average", "To fuse: see METHODS in mmgen_jax/fuse.py.")
flags.DEFINE_string("base", None, "To fuse: what the ingredients were fine-tuned from.")
flags.DEFINE_multi_string(
  "option",
  [],
  "To fuse: name=value, the value as JSON; score of greedy_soup: a held-out loss.",
)
flags.DEFINE_integer("workers", 1, "To compare: runs at a time; 0: only the page.")
flags.DEFINE_integer(
  "index", None, "To compare: do one run of the sweep, or (-1) what all of them need."
)
flags.DEFINE_float("budget_minutes", None, "To compare: what training may cost.")
flags.DEFINE_bool("distributed", False, "Be one of several processes.")
flags.DEFINE_string("coordinator", None, "host:port; default: found by the cluster.")
flags.DEFINE_integer("num_processes", None, "With --coordinator.")
flags.DEFINE_integer("process_id", None, "With --coordinator.")


def parse(argv: list[str]) -> list[str]:
  """What absl's flags leave over; what is wrong in them is told in one line."""
  # First by itself, for the error of the config file, not that of the flag library.
  from mmgen_jax import config as config_lib

  paths = [a.split("=", 1)[1] for a in argv if a.startswith(("--config=", "-config="))]
  for path in paths:
    config_lib.load(path)
  changes = [a for a in argv if re.match(r"--?(no)?config\.", a)]
  kept = None
  if changes and not paths and not any(a in ("--config", "-config") for a in argv):
    kept = _kept_config(argv, changes[0])
  try:
    if kept is not None:  # the overrides are then of that
      delattr(FLAGS, "config")
      config_flags.DEFINE_config_dict("config", kept)
    rest = FLAGS(argv)
  except (flags.Error, AttributeError, KeyError, TypeError) as e:
    raise ValueError(_flag_error(e)) from e
  if not any(a.lstrip("-").startswith(("verbosity", "v=")) for a in argv):
    logging.set_verbosity(logging.WARNING)  # orbax and JAX tell much at INFO
  if len(rest) > 1:
    raise ValueError(f"unexpected argument {rest[1]!r}; every option starts with --")
  if FLAGS.workdir is None and (FLAGS.mode == "fuse" or not FLAGS.dry_run):
    raise ValueError("--workdir is missing: the folder for this run")
  if FLAGS.given and FLAGS.mode != "sample":
    raise ValueError(f"--given goes with --mode=sample, not --mode={FLAGS.mode}")
  return rest


def _kept_config(argv: list[str], change: str):
  """The config of the workdir, for overrides without --config."""
  from mmgen_jax import config as config_lib

  words = [word for a in argv for word in a.split("=", 1)]
  after = [b for a, b in itertools.pairwise(words) if a in ("--workdir", "-workdir")]
  if not after or not (kept := Path(after[-1]) / "config.json").is_file():
    where = f", and there is no {kept} of an earlier run" if after else ""
    raise ValueError(f"{change} is an override: it needs --config=FILE{where}")
  return config_lib.from_json(kept.read_text())


def _flag_error(error: BaseException) -> str:
  if not isinstance(error, AttributeError | KeyError):
    return str(error)
  while error.args and isinstance(error.args[0], BaseException):
    error = error.args[0]  # ml_collections wraps a KeyError, whose text is quoted
  return f"the config has no field {error.args[0] if error.args else error}"


def load_config():
  """The config of the flags, else the one that the workdir was started with."""
  from mmgen_jax import config as config_lib

  if FLAGS.config is not None:
    return FLAGS.config
  kept = Path(FLAGS.workdir or ".") / "config.json"
  if not kept.exists():
    raise ValueError(f"--config is missing, and there is no {kept} of an earlier run")
  return config_lib.from_json(kept.read_text())


def make_score(loss: str):
  """The score of a held-out loss, by the config and with the data of --ingredients[0]."""
  from mmgen_jax import config as config_lib
  from mmgen_jax import evaluate, fuse

  if not FLAGS.ingredients:
    raise ValueError("--ingredients is missing: what to merge")
  path, _ = fuse.locate(FLAGS.ingredients[0])
  if not (path / "config.json").exists():
    raise ValueError(
      f"score={loss!r} is by the config of the first ingredient, and {path} has none;"
      " give a workdir first"
    )
  config = config_lib.from_json((path / "config.json").read_text())
  data_dir = FLAGS.data_dir or os.environ.get("MMGEN_DATA_DIR")
  return evaluate.make_score(config, evaluate.data_dir_of(path, data_dir), loss)


def fuse() -> None:
  """Merges trained networks into a new workdir or file."""
  from mmgen_jax import fuse, process

  process.check_folder(Path(FLAGS.workdir).parent)
  options = fuse.parse_options(FLAGS.option)
  fuse.check_method(FLAGS.method, FLAGS.base, options)
  if FLAGS.dry_run:
    if not FLAGS.ingredients:
      raise ValueError("--ingredients is missing: what to merge")
    for source in [*FLAGS.ingredients, *([FLAGS.base] if FLAGS.base else [])]:
      fuse.locate(source)
    base = f", from {FLAGS.base}" if FLAGS.base else ""
    print(f"{FLAGS.workdir}: {FLAGS.method} of {', '.join(FLAGS.ingredients)}{base}")
    return
  if isinstance(options.get("score"), str):
    options["score"] = make_score(options["score"])
  record = fuse.fuse(
    FLAGS.ingredients, FLAGS.workdir, method=FLAGS.method, base=FLAGS.base, **options
  )
  print(f"{FLAGS.workdir}: {record['method']} of {len(record['ingredients'])}")


def worker_command(path, overrides, workdir, data_dir, index: int) -> list[str]:
  """What does one run of a sweep, in a process of its own."""
  changes = [f"--config.{name}={value}" for name, value in overrides.items()]
  command = [sys.executable, __file__, "--mode=compare", f"--config={path}", *changes]
  return [
    *command,
    f"--workdir={workdir}",
    f"--data_dir={data_dir}",
    f"--index={index}",
  ]


def compare() -> None:
  """Runs a sweep to its end, or one run of it, and writes the page."""
  from mmgen_jax import checkpoint, process, report, sweep

  if FLAGS.config is None:
    raise ValueError("--config is missing: a file that has get_sweep")
  flag = FLAGS["config"]
  path = config_flags.get_config_filename(flag)
  if not isinstance(path, str):
    raise ValueError("--config is missing: a file that has get_sweep")
  overrides = config_flags.get_override_values(flag)
  trials = sweep.load(path, overrides)
  if FLAGS.dry_run:
    for i, trial in enumerate(trials):
      known = sweep.status(FLAGS.workdir, trial) if FLAGS.workdir else ""
      print(i, trial.id, known, *[f"(of {', '.join(trial.needs)})"] * bool(trial.needs))
    return
  workdir = checkpoint.local_directory(FLAGS.workdir)
  process.check_folder(workdir)
  data_dir = FLAGS.data_dir or os.environ.get("MMGEN_DATA_DIR") or workdir / "data"
  if FLAGS.workers or FLAGS.index is not None:  # else the page is written again
    sweep.check(trials, workdir)
  process.use_compile_cache(workdir)
  say = lambda message: print(f"mmgen_jax: {message}", file=sys.stderr, flush=True)
  if FLAGS.index is not None:
    if not -1 <= FLAGS.index < len(trials):
      raise ValueError(f"--index is from -1 to {len(trials) - 1}, got {FLAGS.index}")
    from mmgen_jax import trial

    if FLAGS.index == -1:
      sweep.forget_failures(trials, workdir)  # before any run that waits for another
      trial.prepare(trials, data_dir, say)
      return
    chosen = trials[FLAGS.index]
    trial.run(chosen, trials, workdir, data_dir, say=say)
    report.write(sweep.folder_of(workdir, chosen))
    return
  if FLAGS.workers:
    from mmgen_jax import workers

    do = partial(worker_command, path, overrides, workdir, data_dir)
    workers.run_all(trials, workdir, do, workers=FLAGS.workers, say=say)
  print(report.compare.write(trials, workdir, FLAGS.budget_minutes))


def _refuse_processes() -> None:
  """Raises ValueError if a flag asks for several processes in a mode of one."""
  for name in ("distributed", "coordinator", "num_processes", "process_id"):
    value = FLAGS[name].value
    if value is not None and value is not False:
      why = "which is one process"
      if FLAGS.mode == "compare":
        why = "where every run is one process: to spread a sweep, use --index"
      raise ValueError(f"--{name} does not go with --mode={FLAGS.mode}, {why}")


def run() -> None:
  """Does what the flags say."""
  from mmgen_jax import process

  process.keep_memory()
  if FLAGS.mode in ("fuse", "compare"):
    _refuse_processes()
    fuse() if FLAGS.mode == "fuse" else compare()
    return
  if FLAGS.distributed:
    process.join(FLAGS.coordinator, FLAGS.num_processes, FLAGS.process_id)
  elif FLAGS.coordinator or FLAGS.num_processes or FLAGS.process_id is not None:
    raise ValueError("--coordinator and its companions need --distributed")
  import jax

  from mmgen_jax import checkpoint
  from mmgen_jax import config as config_lib
  from mmgen_jax.steps import STEPS

  config = load_config()
  config_lib.validate(config, STEPS)
  if FLAGS.dry_run:
    from mmgen_jax import describe

    print(describe.describe(config))
    return
  workdir = checkpoint.local_directory(FLAGS.workdir)
  # Without asking JAX where there is but one: a page needs no device.
  first = not FLAGS.distributed or jax.process_index() == 0
  if first:
    process.check_folder(workdir)
  data_dir = FLAGS.data_dir or os.environ.get("MMGEN_DATA_DIR") or workdir / "data"
  process.use_compile_cache(workdir)
  if FLAGS.mode == "train":
    from mmgen_jax import loop, preview

    on_samples = preview.make_on_samples(config, workdir, data_dir)
    loop.train(config, workdir, data_dir=data_dir, on_samples=on_samples)
  if FLAGS.mode in ("train", "evaluate"):
    from mmgen_jax import evaluate

    evaluate.evaluate(config, workdir, data_dir)
  if FLAGS.mode == "sample" and FLAGS.given:
    from mmgen_jax import prompt

    prompt.write(config, workdir, FLAGS.given, count=FLAGS.count)
  elif FLAGS.mode == "sample":
    from mmgen_jax import preview

    preview.sample(config, workdir, data_dir, count=FLAGS.count)
  if FLAGS.mode in ("train", "report") and first:
    from mmgen_jax import report

    print(report.write(workdir))


def main() -> None:
  """The command line."""
  from mmgen_jax import process

  process.exit_with(lambda: app.run(lambda argv: run(), flags_parser=parse))


if __name__ == "__main__":
  main()
