"""What tells the loop to save and end: a signal, a file, an alarm."""

import signal

from megatron_jmed.parallel import JOB_SIGNALS, World
from megatron_jmed.run_folder import RunFolder
from megatron_jmed.train.alarms import Alarm


class StopRequest:
    """Has somebody asked this process to save and end? A signal (TERM, USR1, USR2, Ctrl-C) or the file RUN/stop."""

    def __init__(self, folder: RunFolder, world: World):
        self._file = folder.stop if world.rank == 0 else None  # one rank asks the shared disk, and tells the others
        self._signal, self.is_alarm = "", False
        for number in JOB_SIGNALS:
            signal.signal(number, self._remember)

    def _remember(self, number: int, _frame) -> None:
        self._signal = signal.Signals(number).name

    def reason(self) -> str:
        """Why to stop, or an empty string."""
        if self._signal:
            return self._signal
        return "stop file" if self._file and self._file.exists() else ""

    def note_alarms(self, alarms: list[Alarm]) -> None:
        """An alarm whose action is to stop is a request, too, unless somebody else has asked."""
        for alarm in alarms:
            if alarm.action == "stop" and not self.reason():
                self._signal, self.is_alarm = f"alarm {alarm.name} at step {alarm.step}", True

    def ignore_from_now_on(self) -> None:
        """While Python shuts down it resets handlers to the deadly default; a late signal must not fail a saved run."""
        for number in JOB_SIGNALS:
            signal.signal(number, signal.SIG_IGN)
