"""The gate through which every call of every method of a server goes, whoever registered the method.

A call is turned away at once if its caller is none of those whom the method serves, or has too many calls of the method
open. So a caller's calls count against that caller alone, and against no other method. A method that declares a single
message is served as a stream of one: gRPC would otherwise wait for the message in a worker thread, for as long as the
caller likes. What a method raises without meaning to reaches the caller by its type and place alone.
"""

import logging
import threading
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import grpc

from parties.wire import causes
from parties.wire.callers import at_end, caller_names, first_message, refuse, require_caller

log = logging.getLogger(__name__)
# Calls of a method that one caller may have open, unless the method's rule says otherwise.
MAX_CALLS = 4
# How many callers are expected at methods that serve everybody. Calls of more than these wait for a free thread.
STRANGERS = 16
# Calls beyond the number of threads wait for one, up to this number: those that are refused need a thread shortly.
MAX_WAITING = 1000


@dataclass(frozen=True)
class Rule:
    """What a method allows.

    Args:
        callers: the ids that it serves; None stands for everybody who has a certificate of the authority.
        max_calls: how many calls of it one caller may have open at the same time.
    """

    callers: Collection[str] | None = None
    max_calls: int = MAX_CALLS


Rules = Mapping[str, Rule]


class Guard(grpc.ServerInterceptor):  # type: ignore[misc]
    """Wraps every method of a server.

    Args:
        rules: by the method's full name, such as /mpcformer.v1.Dealer/Deal; a method without one has the rule `Rule()`.
    """

    def __init__(self, rules: Rules) -> None:
        self._rules = rules
        self._open: Counter[tuple[str, str]] = Counter()
        self._lock = threading.Lock()
        self._wrapped: dict[str, Any] = {}

    @property
    def n_threads(self) -> int:
        """The number of calls that must be served at the same time if all callers use up what they may."""
        rules = [*self._rules.values(), Rule()]
        return sum((STRANGERS if rule.callers is None else len(rule.callers)) * rule.max_calls for rule in rules)

    def n_open(self, caller: str | None = None) -> int:
        """Return how many calls are open, of one caller or of all."""
        with self._lock:
            return sum(n for (name, _), n in self._open.items() if caller in (None, name))

    def intercept_service(self, continuation: Callable[[Any], Any], details: Any) -> Any:
        """Return the method's handler, wrapped, or None if there is no such method."""
        handler = continuation(details)
        if handler is None:
            return None
        name = details.method
        if name not in self._wrapped:
            self._wrapped[name] = self._guarded(name, handler)
        return self._wrapped[name]

    def _guarded(self, name: str, handler: Any) -> Any:
        codecs = handler.request_deserializer, handler.response_serializer

        def given(requests: Iterator[Any], context: grpc.ServicerContext) -> Any:
            return requests if handler.request_streaming else first_message(requests, context)

        def one(requests: Iterator[Any], context: grpc.ServicerContext) -> Any:
            with self._served(name, context):
                method = handler.stream_unary or handler.unary_unary
                return method(given(requests, context), context)

        def many(requests: Iterator[Any], context: grpc.ServicerContext) -> Iterator[Any]:
            with self._served(name, context):
                method = handler.stream_stream or handler.unary_stream
                yield from method(given(requests, context), context)

        if handler.response_streaming:
            return grpc.stream_stream_rpc_method_handler(many, *codecs)
        return grpc.stream_unary_rpc_method_handler(one, *codecs)

    @contextmanager
    def _served(self, name: str, context: grpc.ServicerContext) -> Iterator[None]:
        rule = self._rules.get(name, Rule())
        with self._counted(name, rule.max_calls, context):
            if rule.callers is not None:
                require_caller(context, *rule.callers)
            try:
                yield
            except NotImplementedError:
                # A service declares methods that this project does not have.
                refuse(context, grpc.StatusCode.UNIMPLEMENTED, f"there is no {name} here")
            except Exception as error:
                # gRPC ends a call on purpose, and a stream that broke, by an Exception of no other type.
                if type(error) is Exception or isinstance(error, grpc.RpcError):
                    raise
                what = causes.own_words(error)[0]
                log.error("a call of %s failed: %s", name, what)
                refuse(context, grpc.StatusCode.INTERNAL, f"{causes.FAILED}{what}")

    @contextmanager
    def _counted(self, name: str, max_calls: int, context: grpc.ServicerContext) -> Iterator[None]:
        """Count a call until it ends; refuse it if the caller has too many calls of this method open."""
        caller = ",".join(caller_names(context)) or "nobody"
        key, ended = (caller, name), threading.Event()
        with self._lock:
            self._open[key] += 1
            too_many = self._open[key] > max_calls

        def end() -> None:
            with self._lock:
                if not ended.is_set():
                    ended.set()
                    self._open[key] -= 1
                    if not self._open[key]:
                        del self._open[key]

        at_end(context, end)
        try:
            if too_many:
                refuse(context, grpc.StatusCode.RESOURCE_EXHAUSTED, f"{caller} has {max_calls} calls open already")
            yield
        finally:
            # Before the caller hears of the end, so that it may call again at once.
            end()


class Workers(ThreadPoolExecutor):
    """Threads for calls. If no more can be started, calls wait for those that there are, and the server goes on."""

    def _adjust_thread_count(self) -> None:
        try:
            super()._adjust_thread_count()
        except RuntimeError:
            log.error("no more threads can be started: calls wait for one of %d", len(self._threads))
