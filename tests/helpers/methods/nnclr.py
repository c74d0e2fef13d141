"""`pretext.nnclr`, small."""

from methods.method import TEXTURE_VIEW, Lesson, Method

METHODS = {
    "NNCLR": Method(
        {"view": {"size": 24}, "projector_widths": [16, 8], "predictor_width": 16, "queue_size": 20},
        Lesson(
            {
                "view": TEXTURE_VIEW,
                "projector_widths": [256, 64],
                "predictor_width": 256,
                "queue_size": 512,
                "temperature": 0.2,
            },
            # one of 64: chance is 1.6 percent, and the loss of chance ln 64 = 4.16
            lambda metrics: metrics["train/neighbour_top1"] > 0.05 and metrics["train/loss"] < 3.7,
            better=0.12,
            steps=180,
            batch_size=64,
            lr=4e-3,
        ),
        rounding_grows=True,
    )
}
