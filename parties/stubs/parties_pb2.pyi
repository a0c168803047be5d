from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class DType(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    DTYPE_UNSPECIFIED: _ClassVar[DType]
    DTYPE_INT64: _ClassVar[DType]
    DTYPE_UINT8: _ClassVar[DType]
DTYPE_UNSPECIFIED: DType
DTYPE_INT64: DType
DTYPE_UINT8: DType

class TensorHeader(_message.Message):
    __slots__ = ("dtype", "shape")
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    SHAPE_FIELD_NUMBER: _ClassVar[int]
    dtype: DType
    shape: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, dtype: _Optional[_Union[DType, str]] = ..., shape: _Optional[_Iterable[int]] = ...) -> None: ...

class Frame(_message.Message):
    __slots__ = ("session_id", "sender", "operation", "tensors", "offset", "payload", "round")
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    SENDER_FIELD_NUMBER: _ClassVar[int]
    OPERATION_FIELD_NUMBER: _ClassVar[int]
    TENSORS_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    PAYLOAD_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    session_id: bytes
    sender: str
    operation: int
    tensors: _containers.RepeatedCompositeFieldContainer[TensorHeader]
    offset: int
    payload: bytes
    round: int
    def __init__(self, session_id: _Optional[bytes] = ..., sender: _Optional[str] = ..., operation: _Optional[int] = ..., tensors: _Optional[_Iterable[_Union[TensorHeader, _Mapping]]] = ..., offset: _Optional[int] = ..., payload: _Optional[bytes] = ..., round: _Optional[int] = ...) -> None: ...

class OpenSessionRequest(_message.Message):
    __slots__ = ("session_id",)
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    session_id: bytes
    def __init__(self, session_id: _Optional[bytes] = ...) -> None: ...

class OpenSessionReply(_message.Message):
    __slots__ = ("seed", "evidence")
    SEED_FIELD_NUMBER: _ClassVar[int]
    EVIDENCE_FIELD_NUMBER: _ClassVar[int]
    seed: bytes
    evidence: bytes
    def __init__(self, seed: _Optional[bytes] = ..., evidence: _Optional[bytes] = ...) -> None: ...

class CorrelationShape(_message.Message):
    __slots__ = ("sizes",)
    SIZES_FIELD_NUMBER: _ClassVar[int]
    sizes: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, sizes: _Optional[_Iterable[int]] = ...) -> None: ...

class CorrelationRequest(_message.Message):
    __slots__ = ("kind", "shapes", "op", "bits", "params")
    KIND_FIELD_NUMBER: _ClassVar[int]
    SHAPES_FIELD_NUMBER: _ClassVar[int]
    OP_FIELD_NUMBER: _ClassVar[int]
    BITS_FIELD_NUMBER: _ClassVar[int]
    PARAMS_FIELD_NUMBER: _ClassVar[int]
    kind: str
    shapes: _containers.RepeatedCompositeFieldContainer[CorrelationShape]
    op: str
    bits: int
    params: _containers.RepeatedScalarFieldContainer[float]
    def __init__(self, kind: _Optional[str] = ..., shapes: _Optional[_Iterable[_Union[CorrelationShape, _Mapping]]] = ..., op: _Optional[str] = ..., bits: _Optional[int] = ..., params: _Optional[_Iterable[float]] = ...) -> None: ...

class DealRequest(_message.Message):
    __slots__ = ("session_id", "first_operation", "plan", "drawn_id", "batch_operation")
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    FIRST_OPERATION_FIELD_NUMBER: _ClassVar[int]
    PLAN_FIELD_NUMBER: _ClassVar[int]
    DRAWN_ID_FIELD_NUMBER: _ClassVar[int]
    BATCH_OPERATION_FIELD_NUMBER: _ClassVar[int]
    session_id: bytes
    first_operation: int
    plan: _containers.RepeatedCompositeFieldContainer[CorrelationRequest]
    drawn_id: bytes
    batch_operation: int
    def __init__(self, session_id: _Optional[bytes] = ..., first_operation: _Optional[int] = ..., plan: _Optional[_Iterable[_Union[CorrelationRequest, _Mapping]]] = ..., drawn_id: _Optional[bytes] = ..., batch_operation: _Optional[int] = ...) -> None: ...

class PartyEvent(_message.Message):
    __slots__ = ("hello", "ready", "progress", "heartbeat", "report", "batch", "failure")
    HELLO_FIELD_NUMBER: _ClassVar[int]
    READY_FIELD_NUMBER: _ClassVar[int]
    PROGRESS_FIELD_NUMBER: _ClassVar[int]
    HEARTBEAT_FIELD_NUMBER: _ClassVar[int]
    REPORT_FIELD_NUMBER: _ClassVar[int]
    BATCH_FIELD_NUMBER: _ClassVar[int]
    FAILURE_FIELD_NUMBER: _ClassVar[int]
    hello: Hello
    ready: Ready
    progress: Progress
    heartbeat: Heartbeat
    report: Report
    batch: Batch
    failure: Failure
    def __init__(self, hello: _Optional[_Union[Hello, _Mapping]] = ..., ready: _Optional[_Union[Ready, _Mapping]] = ..., progress: _Optional[_Union[Progress, _Mapping]] = ..., heartbeat: _Optional[_Union[Heartbeat, _Mapping]] = ..., report: _Optional[_Union[Report, _Mapping]] = ..., batch: _Optional[_Union[Batch, _Mapping]] = ..., failure: _Optional[_Union[Failure, _Mapping]] = ...) -> None: ...

class Hello(_message.Message):
    __slots__ = ("protocol_version", "role", "release", "insecure")
    PROTOCOL_VERSION_FIELD_NUMBER: _ClassVar[int]
    ROLE_FIELD_NUMBER: _ClassVar[int]
    RELEASE_FIELD_NUMBER: _ClassVar[int]
    INSECURE_FIELD_NUMBER: _ClassVar[int]
    protocol_version: int
    role: str
    release: str
    insecure: str
    def __init__(self, protocol_version: _Optional[int] = ..., role: _Optional[str] = ..., release: _Optional[str] = ..., insecure: _Optional[str] = ...) -> None: ...

class Ready(_message.Message):
    __slots__ = ("student",)
    STUDENT_FIELD_NUMBER: _ClassVar[int]
    student: str
    def __init__(self, student: _Optional[str] = ...) -> None: ...

class Progress(_message.Message):
    __slots__ = ("batch", "n_batches", "segment", "n_segments", "rounds", "bytes")
    BATCH_FIELD_NUMBER: _ClassVar[int]
    N_BATCHES_FIELD_NUMBER: _ClassVar[int]
    SEGMENT_FIELD_NUMBER: _ClassVar[int]
    N_SEGMENTS_FIELD_NUMBER: _ClassVar[int]
    ROUNDS_FIELD_NUMBER: _ClassVar[int]
    BYTES_FIELD_NUMBER: _ClassVar[int]
    batch: int
    n_batches: int
    segment: int
    n_segments: int
    rounds: int
    bytes: int
    def __init__(self, batch: _Optional[int] = ..., n_batches: _Optional[int] = ..., segment: _Optional[int] = ..., n_segments: _Optional[int] = ..., rounds: _Optional[int] = ..., bytes: _Optional[int] = ...) -> None: ...

class Heartbeat(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Phase(_message.Message):
    __slots__ = ("seconds", "bytes_received", "bytes_from_dealer", "rounds")
    SECONDS_FIELD_NUMBER: _ClassVar[int]
    BYTES_RECEIVED_FIELD_NUMBER: _ClassVar[int]
    BYTES_FROM_DEALER_FIELD_NUMBER: _ClassVar[int]
    ROUNDS_FIELD_NUMBER: _ClassVar[int]
    seconds: float
    bytes_received: int
    bytes_from_dealer: int
    rounds: int
    def __init__(self, seconds: _Optional[float] = ..., bytes_received: _Optional[int] = ..., bytes_from_dealer: _Optional[int] = ..., rounds: _Optional[int] = ...) -> None: ...

class BatchReport(_message.Message):
    __slots__ = ("batch_size", "seq_len", "offline", "online", "breakdown", "waited")
    class BreakdownEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    class WaitedEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    BATCH_SIZE_FIELD_NUMBER: _ClassVar[int]
    SEQ_LEN_FIELD_NUMBER: _ClassVar[int]
    OFFLINE_FIELD_NUMBER: _ClassVar[int]
    ONLINE_FIELD_NUMBER: _ClassVar[int]
    BREAKDOWN_FIELD_NUMBER: _ClassVar[int]
    WAITED_FIELD_NUMBER: _ClassVar[int]
    batch_size: int
    seq_len: int
    offline: Phase
    online: Phase
    breakdown: _containers.ScalarMap[str, float]
    waited: _containers.ScalarMap[str, float]
    def __init__(self, batch_size: _Optional[int] = ..., seq_len: _Optional[int] = ..., offline: _Optional[_Union[Phase, _Mapping]] = ..., online: _Optional[_Union[Phase, _Mapping]] = ..., breakdown: _Optional[_Mapping[str, float]] = ..., waited: _Optional[_Mapping[str, float]] = ...) -> None: ...

class Report(_message.Message):
    __slots__ = ("setup", "peak_rss_bytes", "transcript", "batch_plan", "seconds", "scores")
    SETUP_FIELD_NUMBER: _ClassVar[int]
    PEAK_RSS_BYTES_FIELD_NUMBER: _ClassVar[int]
    TRANSCRIPT_FIELD_NUMBER: _ClassVar[int]
    BATCH_PLAN_FIELD_NUMBER: _ClassVar[int]
    SECONDS_FIELD_NUMBER: _ClassVar[int]
    SCORES_FIELD_NUMBER: _ClassVar[int]
    setup: Phase
    peak_rss_bytes: int
    transcript: bytes
    batch_plan: bytes
    seconds: float
    scores: Scores
    def __init__(self, setup: _Optional[_Union[Phase, _Mapping]] = ..., peak_rss_bytes: _Optional[int] = ..., transcript: _Optional[bytes] = ..., batch_plan: _Optional[bytes] = ..., seconds: _Optional[float] = ..., scores: _Optional[_Union[Scores, _Mapping]] = ...) -> None: ...

class Batch(_message.Message):
    __slots__ = ("batch", "report", "predictions", "batch_plan", "n_batches", "student", "terms")
    BATCH_FIELD_NUMBER: _ClassVar[int]
    REPORT_FIELD_NUMBER: _ClassVar[int]
    PREDICTIONS_FIELD_NUMBER: _ClassVar[int]
    BATCH_PLAN_FIELD_NUMBER: _ClassVar[int]
    N_BATCHES_FIELD_NUMBER: _ClassVar[int]
    STUDENT_FIELD_NUMBER: _ClassVar[int]
    TERMS_FIELD_NUMBER: _ClassVar[int]
    batch: int
    report: BatchReport
    predictions: Predictions
    batch_plan: bytes
    n_batches: int
    student: str
    terms: bytes
    def __init__(self, batch: _Optional[int] = ..., report: _Optional[_Union[BatchReport, _Mapping]] = ..., predictions: _Optional[_Union[Predictions, _Mapping]] = ..., batch_plan: _Optional[bytes] = ..., n_batches: _Optional[int] = ..., student: _Optional[str] = ..., terms: _Optional[bytes] = ...) -> None: ...

class Predictions(_message.Message):
    __slots__ = ("rows", "ids", "labels", "groups", "n_outputs", "logits", "refused")
    ROWS_FIELD_NUMBER: _ClassVar[int]
    IDS_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    GROUPS_FIELD_NUMBER: _ClassVar[int]
    N_OUTPUTS_FIELD_NUMBER: _ClassVar[int]
    LOGITS_FIELD_NUMBER: _ClassVar[int]
    REFUSED_FIELD_NUMBER: _ClassVar[int]
    rows: _containers.RepeatedScalarFieldContainer[int]
    ids: _containers.RepeatedScalarFieldContainer[int]
    labels: _containers.RepeatedScalarFieldContainer[float]
    groups: _containers.RepeatedScalarFieldContainer[str]
    n_outputs: int
    logits: _containers.RepeatedScalarFieldContainer[float]
    refused: _containers.RepeatedScalarFieldContainer[bool]
    def __init__(self, rows: _Optional[_Iterable[int]] = ..., ids: _Optional[_Iterable[int]] = ..., labels: _Optional[_Iterable[float]] = ..., groups: _Optional[_Iterable[str]] = ..., n_outputs: _Optional[int] = ..., logits: _Optional[_Iterable[float]] = ..., refused: _Optional[_Iterable[bool]] = ...) -> None: ...

class Scores(_message.Message):
    __slots__ = ("metrics", "examples", "refused")
    class MetricsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    METRICS_FIELD_NUMBER: _ClassVar[int]
    EXAMPLES_FIELD_NUMBER: _ClassVar[int]
    REFUSED_FIELD_NUMBER: _ClassVar[int]
    metrics: _containers.ScalarMap[str, float]
    examples: int
    refused: int
    def __init__(self, metrics: _Optional[_Mapping[str, float]] = ..., examples: _Optional[int] = ..., refused: _Optional[int] = ...) -> None: ...

class Failure(_message.Message):
    __slots__ = ("culprit", "what", "remedy", "exit_code")
    CULPRIT_FIELD_NUMBER: _ClassVar[int]
    WHAT_FIELD_NUMBER: _ClassVar[int]
    REMEDY_FIELD_NUMBER: _ClassVar[int]
    EXIT_CODE_FIELD_NUMBER: _ClassVar[int]
    culprit: str
    what: str
    remedy: str
    exit_code: int
    def __init__(self, culprit: _Optional[str] = ..., what: _Optional[str] = ..., remedy: _Optional[str] = ..., exit_code: _Optional[int] = ...) -> None: ...

class Command(_message.Message):
    __slots__ = ("job", "abort", "finish", "heartbeat")
    JOB_FIELD_NUMBER: _ClassVar[int]
    ABORT_FIELD_NUMBER: _ClassVar[int]
    FINISH_FIELD_NUMBER: _ClassVar[int]
    HEARTBEAT_FIELD_NUMBER: _ClassVar[int]
    job: Job
    abort: Abort
    finish: Finish
    heartbeat: Heartbeat
    def __init__(self, job: _Optional[_Union[Job, _Mapping]] = ..., abort: _Optional[_Union[Abort, _Mapping]] = ..., finish: _Optional[_Union[Finish, _Mapping]] = ..., heartbeat: _Optional[_Union[Heartbeat, _Mapping]] = ...) -> None: ...

class Job(_message.Message):
    __slots__ = ("session_id", "dealer", "model_owner", "data_owner", "dealer_address", "model_owner_address", "engine", "task", "split", "limit", "batch_size", "max_length", "embeddings", "first_batch", "batch_plan", "overlap", "on_refusal", "release", "program", "model", "end_batch", "first_operation")
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    DEALER_FIELD_NUMBER: _ClassVar[int]
    MODEL_OWNER_FIELD_NUMBER: _ClassVar[int]
    DATA_OWNER_FIELD_NUMBER: _ClassVar[int]
    DEALER_ADDRESS_FIELD_NUMBER: _ClassVar[int]
    MODEL_OWNER_ADDRESS_FIELD_NUMBER: _ClassVar[int]
    ENGINE_FIELD_NUMBER: _ClassVar[int]
    TASK_FIELD_NUMBER: _ClassVar[int]
    SPLIT_FIELD_NUMBER: _ClassVar[int]
    LIMIT_FIELD_NUMBER: _ClassVar[int]
    BATCH_SIZE_FIELD_NUMBER: _ClassVar[int]
    MAX_LENGTH_FIELD_NUMBER: _ClassVar[int]
    EMBEDDINGS_FIELD_NUMBER: _ClassVar[int]
    FIRST_BATCH_FIELD_NUMBER: _ClassVar[int]
    BATCH_PLAN_FIELD_NUMBER: _ClassVar[int]
    OVERLAP_FIELD_NUMBER: _ClassVar[int]
    ON_REFUSAL_FIELD_NUMBER: _ClassVar[int]
    RELEASE_FIELD_NUMBER: _ClassVar[int]
    PROGRAM_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    END_BATCH_FIELD_NUMBER: _ClassVar[int]
    FIRST_OPERATION_FIELD_NUMBER: _ClassVar[int]
    session_id: bytes
    dealer: str
    model_owner: str
    data_owner: str
    dealer_address: str
    model_owner_address: str
    engine: str
    task: str
    split: str
    limit: int
    batch_size: int
    max_length: int
    embeddings: str
    first_batch: int
    batch_plan: bytes
    overlap: bool
    on_refusal: str
    release: str
    program: str
    model: str
    end_batch: int
    first_operation: int
    def __init__(self, session_id: _Optional[bytes] = ..., dealer: _Optional[str] = ..., model_owner: _Optional[str] = ..., data_owner: _Optional[str] = ..., dealer_address: _Optional[str] = ..., model_owner_address: _Optional[str] = ..., engine: _Optional[str] = ..., task: _Optional[str] = ..., split: _Optional[str] = ..., limit: _Optional[int] = ..., batch_size: _Optional[int] = ..., max_length: _Optional[int] = ..., embeddings: _Optional[str] = ..., first_batch: _Optional[int] = ..., batch_plan: _Optional[bytes] = ..., overlap: _Optional[bool] = ..., on_refusal: _Optional[str] = ..., release: _Optional[str] = ..., program: _Optional[str] = ..., model: _Optional[str] = ..., end_batch: _Optional[int] = ..., first_operation: _Optional[int] = ...) -> None: ...

class Abort(_message.Message):
    __slots__ = ("culprit", "reason")
    CULPRIT_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    culprit: str
    reason: str
    def __init__(self, culprit: _Optional[str] = ..., reason: _Optional[str] = ...) -> None: ...

class Finish(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class DiagnoseRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class DiagnoseReply(_message.Message):
    __slots__ = ("protocol_version", "release", "role", "id", "unix_time", "serves_as", "free_sessions", "models", "peers")
    PROTOCOL_VERSION_FIELD_NUMBER: _ClassVar[int]
    RELEASE_FIELD_NUMBER: _ClassVar[int]
    ROLE_FIELD_NUMBER: _ClassVar[int]
    ID_FIELD_NUMBER: _ClassVar[int]
    UNIX_TIME_FIELD_NUMBER: _ClassVar[int]
    SERVES_AS_FIELD_NUMBER: _ClassVar[int]
    FREE_SESSIONS_FIELD_NUMBER: _ClassVar[int]
    MODELS_FIELD_NUMBER: _ClassVar[int]
    PEERS_FIELD_NUMBER: _ClassVar[int]
    protocol_version: int
    release: str
    role: str
    id: str
    unix_time: float
    serves_as: _containers.RepeatedScalarFieldContainer[str]
    free_sessions: int
    models: _containers.RepeatedCompositeFieldContainer[ModelClaim]
    peers: _containers.RepeatedCompositeFieldContainer[NamedAddress]
    def __init__(self, protocol_version: _Optional[int] = ..., release: _Optional[str] = ..., role: _Optional[str] = ..., id: _Optional[str] = ..., unix_time: _Optional[float] = ..., serves_as: _Optional[_Iterable[str]] = ..., free_sessions: _Optional[int] = ..., models: _Optional[_Iterable[_Union[ModelClaim, _Mapping]]] = ..., peers: _Optional[_Iterable[_Union[NamedAddress, _Mapping]]] = ...) -> None: ...

class ModelClaim(_message.Message):
    __slots__ = ("student", "facts", "name", "about", "left_today", "left_in_all")
    class AboutEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    STUDENT_FIELD_NUMBER: _ClassVar[int]
    FACTS_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    ABOUT_FIELD_NUMBER: _ClassVar[int]
    LEFT_TODAY_FIELD_NUMBER: _ClassVar[int]
    LEFT_IN_ALL_FIELD_NUMBER: _ClassVar[int]
    student: str
    facts: bytes
    name: str
    about: _containers.ScalarMap[str, str]
    left_today: int
    left_in_all: int
    def __init__(self, student: _Optional[str] = ..., facts: _Optional[bytes] = ..., name: _Optional[str] = ..., about: _Optional[_Mapping[str, str]] = ..., left_today: _Optional[int] = ..., left_in_all: _Optional[int] = ...) -> None: ...

class NamedAddress(_message.Message):
    __slots__ = ("role", "id", "address")
    ROLE_FIELD_NUMBER: _ClassVar[int]
    ID_FIELD_NUMBER: _ClassVar[int]
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    role: str
    id: str
    address: str
    def __init__(self, role: _Optional[str] = ..., id: _Optional[str] = ..., address: _Optional[str] = ...) -> None: ...
