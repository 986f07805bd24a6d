"""The errors of this package, one class per condition a caller may want to tell apart.

SynapseAssetsError
├── ConfigurationError         a setting, an argument or the machine itself is not as it must be
├── StorageError               a store refused an operation, or could not be reached
├── DatasetError
│   ├── DatasetNotFoundError   no such dataset, or no such version of it
│   ├── PartitionNotFoundError the dataset has no data for a partition that was asked for
│   ├── ArrivalVanishedError   blobs are gone, or others, since a run was asked for them
│   ├── SchemaChangedError     new data would change the columns, and the asset does not allow it
│   ├── UnsupportedTableError  a table or a column that the oldest supported reader cannot read
│   ├── StagedFilesError       staged files are not what the attempt's manifest says
│   └── CommitConflictError    other writers kept winning, attempt after attempt
└── ComputeError
    ├── BundleError            a step's code cannot be shipped as it is
    ├── StepFailedError        the step ran and failed, or ended without proof that it finished
    │   └── StepRefusedError   the step refused its input, and would again (`compute.attempt`)
    ├── StepTimeoutError       a phase of the step took longer than its limit
    └── ServiceUnavailableError a compute service was out of reach, or full, for too long

Every message says what failed, on which thing, and what to do next.
"""


class SynapseAssetsError(Exception):
    """Base of every error that this package raises on purpose."""


class ConfigurationError(SynapseAssetsError):
    """Raised when a setting, an argument or the machine is not as it must be."""


class StorageError(SynapseAssetsError, OSError):
    """Raised when a store refused an operation, or could not be reached."""


class DatasetError(SynapseAssetsError):
    """Base of the errors about a dataset."""


class DatasetNotFoundError(DatasetError):
    """Raised when a dataset, or the version asked for, does not exist."""


class PartitionNotFoundError(DatasetError):
    """Raised when a dataset holds no data for a partition that was asked for."""


class ArrivalVanishedError(DatasetError):
    """Raised when the blobs that a run was asked for are gone, or others, when it reads them."""


class SchemaChangedError(DatasetError):
    """Raised when new data would change a table's columns and the asset does not allow it."""


class UnsupportedTableError(DatasetError):
    """Raised when a table or a column needs more than the oldest supported reader offers."""


class StagedFilesError(DatasetError):
    """Raised when staged files are not what the manifest of their attempt says."""


class CommitConflictError(DatasetError):
    """Raised when concurrent writers kept winning until the retries were used up."""


class ComputeError(SynapseAssetsError):
    """Base of the errors about running a step."""


class BundleError(ComputeError):
    """Raised when a step's code cannot be shipped as it is."""


class StepFailedError(ComputeError):
    """Raised when a step failed, or ended without the proof that it finished."""


class StepTimeoutError(ComputeError):
    """Raised when a phase of a step took longer than its limit."""


class ServiceUnavailableError(ComputeError):
    """Raised when a compute service was out of reach, or had no room, for too long."""
