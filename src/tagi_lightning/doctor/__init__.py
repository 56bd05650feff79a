"""What `tagi doctor` looks at: versions, the machine, folders. Each check gives findings, and changes nothing."""

from tagi_lightning.doctor.finding import Finding

__all__ = ["Finding"]
