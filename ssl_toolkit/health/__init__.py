"""Health checks: before a run (``diagnose``) and during it (`HealthMonitor`)."""

from ssl_toolkit.health.findings import Check, Finding
from ssl_toolkit.health.layers import LayerStatistics, draw_layers, layer_statistics

__all__ = ["Check", "Finding", "LayerStatistics", "draw_layers", "layer_statistics"]
