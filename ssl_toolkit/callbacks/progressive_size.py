"""Progressive resizing: small views first, which take less arithmetic."""

from __future__ import annotations

from typing import Any

from lightning import Callback, LightningModule, Trainer


class ProgressiveSize(Callback):
    """Progressive resizing: a task begins with small views, which grow to their size during the run.

    A convolutional network works on images of any size, and its arithmetic goes with the square of their side. The
    first part of a training gets along with a coarse picture (Tan and Le 2021, arXiv 2104.00298, section 4), but the
    last part must see what the network will be used on (Touvron et al. 2019, arXiv 1906.06423). The side is a function
    of the step alone, so a resumed run goes on as it would have. Validation and evaluation see the whole size.

    For tasks of which nothing but the backbone knows the size of the views (`PretextTask.views_may_shrink`). Views of
    several sizes shrink in proportion.

    Args:
        start: Side of the first views as a fraction of their size, above 0; 1 leaves the views alone.
        until: The fraction of the run after which the views have their size, 0 to 1; the side grows in a straight line.
        multiple: The side is a multiple of so many pixels, the next smaller one, as long as it is growing.
    """

    def __init__(self, start: float = 1.0, until: float = 0.75, multiple: int = 4) -> None:
        if not 0 < start <= 1:
            raise ValueError(f"progressive.start is {start}, expected a share of the size above 0 and at most 1")
        if not 0 <= until <= 1:
            raise ValueError(f"progressive.until is {until}, expected a share of the run, 0 to 1")
        if multiple < 1:
            raise ValueError(f"progressive.multiple is {multiple}, expected at least 1 pixel")
        self.start = start
        self.until = until
        self.multiple = multiple

    def side(self, size: int, progress: float) -> int:
        """The side of the views in pixels.

        Args:
            size: Of the whole views, in pixels.
            progress: The fraction of the run that is over, 0 to 1.
        """
        if self.start == 1 or progress >= self.until:
            return size
        fraction = self.start + (1 - self.start) * progress / self.until
        # the small number is for sides that are a multiple but for rounding
        return min(size, max(1, int(size * fraction / self.multiple + 1e-6)) * self.multiple)

    def mean_area(self, size: int) -> float:
        """The average number of pixels of a view over the run."""
        return sum(self.side(size, step / 1000) ** 2 for step in range(1000)) / 1000

    def check(self, task: LightningModule) -> None:
        """Raises a ValueError if the task cannot do with smaller views."""
        if self.start < 1 and not getattr(task, "views_may_shrink", False):
            raise ValueError(
                f"progressive.start is {self.start}, but the views of {type(task).__name__} have one size; leave it out"
            )

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Checks the task, for those who use no command line."""
        self.check(pl_module)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Sets the side of the views of this step."""
        for view, _ in getattr(pl_module, "random_views", ()):
            view.side = self.side(view.size, trainer.global_step / trainer.estimated_stepping_batches)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Whole views, so that the values of all epochs compare."""
        self.on_fit_end(trainer, pl_module)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Whole views from now on."""
        for view, _ in getattr(pl_module, "random_views", ()):
            view.side = view.size
