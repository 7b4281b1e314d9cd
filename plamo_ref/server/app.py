"""The routes, and the app that has them.

Invariant: a route checks, hands over and answers; it decides nothing of its own.
"""

from fastapi import FastAPI, Request
from fastapi.middleware.cors import CORSMiddleware
from msgspec import UNSET
from starlette.responses import Response

import plamo_ref
from plamo_ref.server import errors
from plamo_ref.server.document import describe
from plamo_ref.server.edge.bodies import bounded_route
from plamo_ref.server.edge.gate import Gate
from plamo_ref.server.edge.request_ids import HEADER, RequestIds, request_id
from plamo_ref.server.errors import conflict
from plamo_ref.server.metrics import CONTENT_TYPE
from plamo_ref.server.openai import answers, described
from plamo_ref.server.openai.chat import Chat, chat_prompt, chat_template
from plamo_ref.server.openai.completions import Completion
from plamo_ref.server.openai.params import check_model, no_conversation
from plamo_ref.server.openai.responses import Responding
from plamo_ref.server.openai.responses_schemas import ResponsesRequest
from plamo_ref.server.openai.schemas import (
    ChatRequest,
    CompletionRequest,
    DetokenizeRequest,
    TokenizeRequest,
)
from plamo_ref.server.openai.wire import EventStream, answer, json_response
from plamo_ref.server.service import LONG_TEXT, Service
from plamo_ref.server.tools.offered import for_template


def create_app(service: Service) -> FastAPI:
    """The server of one service. Its engine has to be started, and closed, by the caller."""
    app = FastAPI(
        title="plamo-ref",
        version=plamo_ref.__version__,
        docs_url=None,  # its page loads scripts from elsewhere
        redoc_url=None,
        root_path=service.config.root_path,
        responses=described.ANSWERS,
    )
    app.router.route_class = bounded_route(service)
    errors.install(app)
    _generation_routes(app, service)
    _text_routes(app, service)
    _state_routes(app, service)
    describe(app, service)
    app.add_middleware(Gate, config=service.config)
    if service.config.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=list(service.config.cors_origins),
            allow_methods=["GET", "POST"],
            allow_headers=["*"],
            expose_headers=[HEADER],
        )
    app.add_middleware(RequestIds)  # outermost: refusals have one too
    return app


def _generation_routes(app: FastAPI, service: Service) -> None:
    @app.post("/v1/completions", responses=described.COMPLETION)
    async def completions(body: CompletionRequest, request: Request) -> Response:
        name = request_id(request, body.request_id)
        completion = await Completion.prepare(service, body, name)
        if body.stream:
            return EventStream(completion.events())
        return await answer(request.receive, completion.whole())

    @app.post("/v1/chat/completions", responses=described.CHAT)
    async def chat(body: ChatRequest, request: Request) -> Response:
        name = request_id(request, body.request_id)
        prepared = await Chat.prepare(service, body, name)
        if body.stream:
            return EventStream(prepared.events())
        return await answer(request.receive, prepared.whole())

    @app.post("/v1/responses", responses=described.RESPONSE)
    async def responses(body: ResponsesRequest, request: Request) -> Response:
        name = request_id(request, body.request_id)
        responding = await Responding.prepare(service, body, name)
        if body.stream:
            return EventStream(responding.events(), named=True)
        return await answer(request.receive, responding.whole())


def _text_routes(app: FastAPI, service: Service) -> None:
    tokenizer = service.llm.tokenizer

    @app.post("/tokenize", responses=described.TOKENIZED)
    async def tokenize(body: TokenizeRequest) -> Response:
        check_model(body.model, service.config)
        if (body.prompt is None) == (body.messages is None):
            raise conflict("give either prompt or messages", "prompt")
        if body.messages is not None:
            template = chat_template(service)
            tools = for_template(body.tools, template.tools) if body.tools else None
            ids = (await chat_prompt(service, body, tools)).ids
        else:
            no_conversation(body)
            add_bos = False if body.add_special_tokens is False else None
            ids = await service.encode(body.prompt or "", add_bos=add_bos)
        limit = service.llm.max_model_len

        def work() -> Response:
            texts = [tokenizer.decode([i]) for i in ids] if body.return_token_strs else None
            return json_response(answers.Tokenized(ids, len(ids), limit, texts))

        return await service.beside(work, len(ids) > LONG_TEXT)

    @app.post("/detokenize", responses=described.DETOKENIZED)
    async def detokenize(body: DetokenizeRequest) -> Response:
        check_model(body.model, service.config)
        service.check_ids(body.tokens, "tokens")

        def work() -> Response:
            return json_response(answers.Detokenized(tokenizer.decode(body.tokens)))

        return await service.beside(work, len(body.tokens) > LONG_TEXT)

    @app.get("/tokenizer_info", responses=described.TOKENIZER)
    async def tokenizer_info() -> Response:
        name, size = type(tokenizer).__name__, tokenizer.vocab_size
        return json_response(answers.TokenizerInfo(name, size, **tokenizer.special_tokens))


def _state_routes(app: FastAPI, service: Service) -> None:
    def card(name: str) -> answers.ModelCard:
        root, longest = service.config.model_name, service.llm.max_model_len
        return answers.ModelCard(name, "model", service.started, "plamo-ref", root, longest)

    @app.get("/v1/models", responses=described.MODELS)
    async def models() -> Response:
        cards = [card(name) for name in service.config.model_names]
        return json_response(answers.ModelList("list", cards))

    @app.get("/v1/models/{model:path}", responses=described.MODEL)
    async def model(model: str) -> Response:
        check_model(model, service.config)
        return json_response(card(model))

    @app.get("/health", responses=described.HEALTH)
    async def health() -> Response:
        state = service.llm.state
        replicas = {name: each.state for name, each in service.llm.replicas.items()} or UNSET
        response = json_response(answers.Health(state, service.llm.num_restarts, replicas))
        response.status_code = 200 if state == "ready" else 503
        return response

    @app.post("/reset_prefix_cache", responses=described.RESET)
    async def reset_prefix_cache() -> Response:
        return json_response(answers.Reset(await service.llm.reset_prefix_cache()))

    @app.get("/version", responses=described.VERSION)
    async def version() -> Response:
        return json_response(answers.Version(plamo_ref.__version__))

    @app.get("/metrics", response_class=Response, responses=described.METRICS)
    async def metrics() -> Response:
        return Response(service.metrics.page(), headers={"Content-Type": CONTENT_TYPE})
