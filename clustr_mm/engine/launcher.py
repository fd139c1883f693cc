"""What tools/dist_*.sh and the processes that it starts tell each other."""

import ctypes
import os
import signal
import sys

# In the environment of the processes: the launcher, with which they end.
LAUNCHER_PID = 'CLUSTR_LAUNCHER_PID'
_PR_SET_PDEATHSIG = 1  # of Linux's prctl(2)


def end_with_launcher() -> None:
    """Asks the system to kill this process when the launcher that started it is no more.

    torchrun ends its processes itself, unless it is killed outright; they would train on, hold
    their GPUs, and write into the work folder of the run that takes their place.
    """
    launcher = os.environ.get(LAUNCHER_PID)
    if launcher is None or not sys.platform.startswith('linux'):
        return
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != int(launcher):  # it died before the request
        os.kill(os.getpid(), signal.SIGKILL)


def was_restarted() -> bool:
    """Whether torchrun started this process again after a failure."""
    return int(os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')) > 0


def stop_restarts() -> None:
    """Tells the launcher, where it would start this process again, that this mends nothing."""
    may_restart = os.environ.get('TORCHELASTIC_MAX_RESTARTS', '0') != '0'
    if may_restart and os.environ.get(LAUNCHER_PID) == str(os.getppid()):
        os.kill(os.getppid(), signal.SIGUSR1)


def end_when_told() -> None:
    """Lets :func:`stop_restarts` end this process, the launcher, and with it all that it started.

    torchrun cannot tell a user's mistake from a death: it would start both again.
    """

    def end(*_: object) -> None:
        raise SystemExit('error: a process of the run ended with status 1; its message is above')

    signal.signal(signal.SIGUSR1, end)
