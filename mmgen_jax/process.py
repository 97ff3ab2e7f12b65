"""A run as an operating-system process: joining a cluster, owning its folder, ending.

The constants below are its exit codes; deploy/README.md lists all that can occur, and
what to do about each.
"""

import contextlib
import errno
import logging
import os
import socket
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

# JAX is imported where it is needed: a mistyped flag is told without waiting for it.

BAD_INPUT = 2  # config, data, shapes, files; one line says which
NON_FINITE = 70  # a loss
PEER_LOST = 71  # another process of the run
SAVE_FAILED = 74  # a checkpoint could not be written, or the disk is full
STOPPED = 75  # by SIGTERM or SIGINT; everything is saved
INTERRUPTED = 130  # a second SIGINT; the last checkpoint is what there is
HEARTBEAT_SECS = 20  # a process that is silent for this long counts as dead
SHUTDOWN_SECS = 24 * 3600
OWNER_SECS = 60  # one that was told to stop may still be saving
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
# What XLA says of the program itself, whatever becomes of the other processes.
OWN_FAULTS = ("RESOURCE_EXHAUSTED", "INVALID_ARGUMENT", "UNIMPLEMENTED")


def join(
  coordinator: str | None = None,
  num_processes: int | None = None,
  process_id: int | None = None,
) -> None:
  """Makes this process one of several; to be called before anything computes.

  Args:
    coordinator: host:port of process 0. Without it the cluster is detected (Cloud TPU,
      GKE, SLURM, Open MPI).
    num_processes: how many there are; with `coordinator`.
    process_id: which one this is; with `coordinator`.

  Raises:
    ValueError: if no cluster is found, or only some of the three are given.
  """
  import jax

  given = [x is not None for x in (coordinator, num_processes, process_id)]
  if any(given) and not all(given):
    raise ValueError("--coordinator, --num_processes and --process_id go together")
  # Of no effect but on CPU, where the processes of a test talk over loopback.
  jax.config.update("jax_cpu_collectives_implementation", "gloo")
  # Its handler swallows a SIGTERM before the first step; the loop has its own.
  jax.config.update("jax_enable_preemption_service", False)
  try:
    jax.distributed.initialize(
      coordinator,
      num_processes,
      process_id,
      heartbeat_timeout_seconds=HEARTBEAT_SECS,
      # At the end the others wait for process 0, which evaluates and writes the report.
      shutdown_timeout_seconds=SHUTDOWN_SECS,
      cluster_detection_method="deactivate" if all(given) else None,
      local_device_ids=None,
    )
  except ValueError as e:
    raise ValueError(
      f"no cluster was detected ({e}); start this under SLURM, Open MPI, GKE or on a"
      " TPU VM, or give --coordinator, --num_processes and --process_id"
    ) from e


def keep_memory() -> bool:
  """Lets glibc keep what is freed; False where the C library is another.

  XLA's programs on CPUs take a block for their temporaries at every call. One that is
  large glibc asks the system for each time and gives back, and the system clears every
  page of it anew: up to half of an update's time.
  """
  import ctypes

  try:
    mallopt = ctypes.CDLL("libc.so.6").mallopt
  except (OSError, AttributeError):
    return False
  arenas, blocks_from_system, trim_above = -8, -4, -1  # as <malloc.h> numbers them
  settings = {arenas: 1, blocks_from_system: 0, trim_above: -1}
  return all([mallopt(what, value) for what, value in settings.items()])


def check_folder(path) -> None:
  """Raises ValueError if a folder is not there and cannot be made, or written to."""
  path = at = Path(path).absolute()
  while not os.path.lexists(at):
    at = at.parent
  if not at.is_dir():
    raise ValueError(f"{path} cannot be a folder: {at} is not one")
  if not os.access(at, os.W_OK | os.X_OK):
    raise ValueError(f"{path} cannot be written: no permission in {at}")


@contextlib.contextmanager
def own(workdir: Path) -> Iterator[None]:
  """Keeps others from training in a folder; of the processes of a run, the first does.

  Raises:
    ValueError: if after `OWNER_SECS` seconds another run still trains there.
  """
  import jax

  from mmgen_jax.data import read

  if jax.process_index() != 0:
    yield
    return
  with contextlib.ExitStack() as stack:
    try:
      file = stack.enter_context(read.lock(workdir / ".lock", OWNER_SECS))
    except TimeoutError as owner:
      raise ValueError(
        f"{workdir} is in use: {owner} trains there; stop it, wait for its end, or"
        " choose another --workdir"
      ) from None
    file.truncate(0)
    file.write(f"process {os.getpid()} of {socket.gethostname()}")
    file.flush()
    yield


def use_compile_cache(workdir) -> None:
  """Keeps compiled programs in <workdir>/compile_cache, so a second start is quick.

  Where JAX_COMPILATION_CACHE_DIR is set, that is used.
  """
  import jax

  if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
    path = str(Path(workdir).absolute() / "compile_cache")
    jax.config.update("jax_compilation_cache_dir", path)
  jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
  jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


def exit_with(main: Callable[[], None]) -> None:
  """Runs `main` and ends the process with the exit code that fits (see above).

  What a user can mend is told in one line, without a traceback; MMGEN_TRACEBACK=1 adds
  it. Everything else keeps its traceback and exits with 1.
  """
  handler = logging.StreamHandler()
  handler.setFormatter(logging.Formatter("mmgen_jax: %(message)s"))
  logger = logging.getLogger("mmgen_jax")
  logger.addHandler(handler)
  logger.propagate = False
  try:
    main()
  except KeyboardInterrupt:
    print("mmgen_jax: interrupted", file=sys.stderr)
    leave(INTERRUPTED)
  except Exception as e:
    code = exit_code(e)
    if code == 1 or os.environ.get("MMGEN_TRACEBACK"):
      traceback.print_exc()
    if code != 1:
      kind = "" if code == STOPPED else "error: "
      print(f"mmgen_jax: {kind}{one_line(e, code)}", file=sys.stderr)
    leave(code)


def leave(code: int) -> None:
  """Ends the process; at once if others of the run may be waiting for it for ever."""
  sys.stdout.flush()
  sys.stderr.flush()
  jax = sys.modules.get("jax")
  if jax and jax.distributed.is_initialized() and code not in (0, STOPPED):
    os._exit(code)  # a normal exit waits at a barrier that the others never reach
  sys.exit(code)


def exit_code(error: BaseException) -> int:
  """The exit code for an exception; 1 for what nobody expected."""
  if isinstance(error, ValueError | FileNotFoundError) and _ours(error):
    return BAD_INPUT
  import jax

  from mmgen_jax import checkpoint, loop

  if isinstance(error, loop.Stopped):
    return STOPPED
  if isinstance(error, loop.NonFiniteError):
    return NON_FINITE
  if isinstance(error, checkpoint.SaveError):
    return SAVE_FAILED
  if isinstance(error, OSError) and error.errno in NO_ROOM:
    return SAVE_FAILED
  if isinstance(error, jax.errors.JaxRuntimeError) and jax.process_count() > 1:
    return 1 if str(error).startswith(OWN_FAULTS) else PEER_LOST
  return 1


def one_line(error: BaseException, code: int) -> str:
  """The message of an exception, on one line."""
  text = " ".join(str(error).split())
  if code == PEER_LOST:
    import jax

    return (
      f"process {jax.process_index()} of {jax.process_count()} lost another one"
      f" ({text[:200]}); start the run again, it goes on from its last checkpoint"
    )
  return text


def _ours(error: BaseException) -> bool:
  """Whether this project raised it: a ValueError of JAX's is a bug, not bad input."""
  frames = traceback.extract_tb(error.__traceback__)
  root = Path(__file__).parent
  homes = (root, root.parent / "configs", root.parent / "launch.py")
  last = Path(frames[-1].filename).resolve()
  return any(last == home or home in last.parents for home in homes)
