"""A training's events as whoever watches it sees them."""

from __future__ import annotations

from encml.experiment.display import Display
from encml.experiment.training.events import Accuracy, Done, Event, Phase, Step


class Watch:
    """Passes a training's events on to a display."""

    def __init__(self, display: Display) -> None:
        self._display = display
        self._steps = 0
        self._state: dict[str, str] = {}
        self.step_seconds = 0.0
        """Of one step, on average, since training began or went on."""

    def hear(self, event: Event) -> None:
        """A listener of ``TrainingJob``."""
        match event:
            case Phase():
                self._display.phase(event.text)
            case Step():
                self._steps = event.steps
                done_here = event.step - event.since
                self.step_seconds = event.seconds / done_here
                if event.loss is not None:
                    self._state["loss"] = f"loss {event.loss:.3f}"
                left = (self._steps - event.step) * self.step_seconds
                self._display.steps("Steps", event.step, self._steps, ", ".join(self._state.values()), left)
            case Accuracy():
                self._state["accuracy"] = f"accuracy {100 * event.share:.2f} %"
                self._display.accuracy(event.step, self._steps, event.share)
            case Done():
                pass
