"""/healthz, /readyz and /metrics: for balancers and Prometheus (design.md section 10, "Health")."""

import ipaddress

from starlette.requests import Request
from starlette.responses import Response

from posthouse.api.bearer import Bearer, peer_of
from posthouse.api.front import was_forwarded
from posthouse.api.hub import Posthouse
from posthouse.api.problems import answer, method_not_allowed
from posthouse.api.rendering import json_answer
from posthouse.errors import PosthouseError
from posthouse.metrics import CONTENT_TYPE, Metrics
from posthouse.model.actor import Permission


class Probes:
    """The three paths. Health and readiness are open to all who reach us; they tell little."""

    PATHS = ("/healthz", "/readyz", "/metrics")

    def __init__(self, hub: Posthouse, bearer: Bearer) -> None:
        self._hub = hub
        self._bearer = bearer
        self._metrics = Metrics(hub)
        self._networks = hub.settings.networks("metrics_network")

    async def answer(self, request: Request) -> Response:
        """Answer one of PATHS."""
        if request.method != "GET":
            return answer(method_not_allowed({"Allow": "GET, HEAD"}))
        if request.url.path == "/healthz":
            # Also with a full disk or a lost database: a restart would mend neither.
            return json_answer({"status": "ok"})
        if request.url.path == "/readyz":
            reasons = self._hub.readiness()
            return json_answer({"ready": not reasons, "reasons": reasons}, 503 if reasons else 200)
        return await self._answer_metrics(request)

    async def _answer_metrics(self, request: Request) -> Response:
        try:
            if not self._is_open_to(request):
                self._bearer.actor(request).require(Permission.READ)
            return Response(await self._metrics.render(), media_type=CONTENT_TYPE)
        except PosthouseError as error:
            return answer(error)

    def _is_open_to(self, request: Request) -> bool:
        peer = peer_of(request)
        if self._bearer.trusted is not None:
            return True
        try:
            address = ipaddress.ip_address(peer.partition("%")[0])
        except ValueError:
            return False
        address = getattr(address, "ipv4_mapped", None) or address
        # A proxy on this machine that nobody told us of must not make the whole world loopback.
        if address.is_loopback:
            return not was_forwarded(request.scope)
        return any(address.version == network.version and address in network for network in self._networks)
