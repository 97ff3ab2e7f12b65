"""Trains, evaluates, draws samples, writes the report; the only file with flags.

  python launch.py --config=configs/quickstart.py --workdir=runs/quickstart
  python launch.py --config=configs/quickstart.py:smoke --workdir=/tmp/x --dry_run
  python launch.py --config=configs/quickstart.py --config.seed=1 --workdir=runs/seed1
  python launch.py --workdir=runs/seed1              # goes on with that run's config
  python launch.py --workdir=runs/seed1 --mode=report
  python launch.py --mode=fuse --ingredients=runs/a,runs/b --workdir=runs/soup

The same command goes on from where the workdir stopped. On several hosts, start it on
each with --distributed (see deploy/). Exit codes: mmgen_jax/process.py.
"""

import os
from pathlib import Path

from absl import app, flags, logging
from ml_collections import config_flags

FLAGS = flags.FLAGS
MODES = ("train", "evaluate", "sample", "report", "fuse")

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
flags.DEFINE_list(
  "ingredients", [], "To fuse: workdirs (DIR or DIR:STEP) or .safetensors files."
)
flags.DEFINE_string("method", "average", "To fuse: see METHODS in mmgen_jax/fuse.py.")
flags.DEFINE_string("base", None, "To fuse: what the ingredients were fine-tuned from.")
flags.DEFINE_multi_string("option", [], "To fuse: name=value, the value as JSON.")
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
  try:
    rest = FLAGS(argv)
  except (flags.Error, AttributeError, KeyError, TypeError) as e:
    raise ValueError(_flag_error(e)) from e
  if not any(a.lstrip("-").startswith(("verbosity", "v=")) for a in argv):
    logging.set_verbosity(logging.WARNING)  # orbax and JAX tell much at INFO
  if len(rest) > 1:
    raise ValueError(f"unexpected argument {rest[1]!r}; every option starts with --")
  if FLAGS.workdir is None and not FLAGS.dry_run:
    raise ValueError("--workdir is missing: the folder for this run")
  return rest


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


def fuse() -> None:
  """Merges trained networks into a new workdir or file."""
  from mmgen_jax import fuse

  options = fuse.parse_options(FLAGS.option)
  record = fuse.fuse(
    FLAGS.ingredients, FLAGS.workdir, method=FLAGS.method, base=FLAGS.base, **options
  )
  print(f"{FLAGS.workdir}: {record['method']} of {len(record['ingredients'])}")


def run() -> None:
  """Does what the flags say."""
  from mmgen_jax import process

  if FLAGS.mode == "fuse":
    fuse()
    return
  if FLAGS.distributed:
    process.join(FLAGS.coordinator, FLAGS.num_processes, FLAGS.process_id)
  elif FLAGS.coordinator or FLAGS.num_processes or FLAGS.process_id is not None:
    raise ValueError("--coordinator and its companions need --distributed")
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
  data_dir = FLAGS.data_dir or os.environ.get("MMGEN_DATA_DIR") or workdir / "data"
  process.use_compile_cache(workdir)
  if FLAGS.mode == "train":
    from mmgen_jax import evaluate, loop

    on_samples = evaluate.make_on_samples(config, workdir, data_dir)
    loop.train(config, workdir, data_dir=data_dir, on_samples=on_samples)
  if FLAGS.mode in ("train", "evaluate"):
    from mmgen_jax import evaluate

    evaluate.evaluate(config, workdir, data_dir)
  if FLAGS.mode == "sample":
    from mmgen_jax import evaluate

    evaluate.sample(config, workdir, data_dir)
  if FLAGS.mode in ("train", "report"):
    from mmgen_jax import report

    print(report.write(workdir))


def main() -> None:
  """The command line."""
  from mmgen_jax import process

  process.exit_with(lambda: app.run(lambda argv: run(), flags_parser=parse))


if __name__ == "__main__":
  main()
