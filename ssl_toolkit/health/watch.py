"""The class path `ssl_toolkit.health.watch.Watch`, which `HealthMonitor` had before."""

from ssl_toolkit.health.monitor import HealthMonitor as Watch

__all__ = ["Watch"]
