"""What the server counts, for Prometheus: the names that vLLM uses, with the prefix `edge_`."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from edge.engine.completion import Completion
from edge.engine.driver import DriverLoad

if TYPE_CHECKING:
    from edge.engine.prefix_cache import PrefixStatistics

_FIRST_TOKEN = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 200)
_TOKEN = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2)
_REQUEST = (0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500)


class Metrics:
    """One model's."""

    def __init__(
        self, model: str, load: Callable[[], DriverLoad], prefixes: Callable[[], PrefixStatistics | None]
    ) -> None:
        from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

        self._registry = CollectorRegistry()

        def counter(name: str, what: str, *labels: str) -> Counter:
            made = Counter(f"edge_{name}", what, ("model_name", *labels), registry=self._registry)
            return made if labels else made.labels(model)

        def gauge(name: str, what: str, value: Callable[[], float]) -> None:
            made = Gauge(f"edge_{name}", what, ("model_name",), registry=self._registry)
            made.labels(model).set_function(value)

        def histogram(name: str, what: str, buckets: tuple[float, ...]) -> Histogram:
            made = Histogram(f"edge_{name}", what, ("model_name",), registry=self._registry, buckets=buckets)
            return made.labels(model)

        def kept() -> float:
            found = prefixes()
            return 0 if found is None else found.sequences

        self._model = model
        gauge("num_requests_running", "Answers that are made.", lambda: load().running)
        gauge("num_requests_waiting", "Requests that wait for their turn.", lambda: load().waiting)
        gauge("prefix_cache_sequences", "Sequences in the prefix cache.", kept)
        self.first_token = histogram(
            "time_to_first_token_seconds", "From a request to the first token.", _FIRST_TOKEN
        )
        self.next_token = histogram(
            "inter_token_latency_seconds", "Between two passes that brought tokens.", _TOKEN
        )
        self.request = histogram("e2e_request_latency_seconds", "From a request to its end.", _REQUEST)
        self._ends = counter("request_success_total", "Answers by what ended them.", "finished_reason")
        self._responses = counter("http_responses_total", "Responses by status.", "status")
        self._prompt = counter("prompt_tokens_total", "Tokens of prompts.")
        self._generated = counter("generation_tokens_total", "Tokens of answers.")
        self._queries = counter("prefix_cache_queries_total", "Tokens of prompts that were looked up.")
        self._hits = counter("prefix_cache_hits_total", "Tokens of prompts that were found.")
        self._drafts = counter("spec_decode_num_drafts_total", "Passes that may have had guesses.")
        self._drafted = counter("spec_decode_num_draft_tokens_total", "Tokens that were guessed.")
        self._accepted = counter("spec_decode_num_accepted_tokens_total", "Guesses that were right.")

    def responded(self, status: int) -> None:
        """A response has begun."""
        self._responses.labels(self._model, str(status)).inc()

    def ended(self, done: Completion) -> None:
        """An answer is there."""
        self._ends.labels(self._model, done.stop_reason).inc()
        self._prompt.inc(done.prompt_tokens)
        self._generated.inc(len(done.tokens))
        self._queries.inc(done.prompt_tokens)
        self._hits.inc(done.reused_tokens)
        if (guessed := done.speculation) is not None:
            self._drafts.inc(guessed.passes)
            self._drafted.inc(guessed.drafted)
            self._accepted.inc(guessed.accepted)

    def text(self) -> tuple[bytes, str]:
        """The page and its content type."""
        from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

        return generate_latest(self._registry), CONTENT_TYPE_LATEST
