"""Where a model is served: list prices hold for vendors and gateways, and not for a machine of one's own."""

import pytest

from services.usage.pricing import UNKNOWN, Priced, PriceList
from tests.support.prices import NOW

OWN_MACHINES = [
    "http://127.0.0.1:8000/v1", "http://localhost:1234/v1", "http://[::1]:8000/v1", "http://0.0.0.0:8000/v1",
    "http://10.1.2.3/v1", "http://172.17.0.1:8080/v1", "http://192.168.1.5:11434/v1", "http://100.64.1.2/v1",
    "http://[fd00::1]/v1", "http://169.254.1.1/v1", "http://ollama:11434/v1", "http://vllm:8000/v1", "http://llm/v1",
    "http://host.docker.internal:11434/v1", "http://gpu.local/v1", "http://gpu.lan:8000/v1", "http://LOCALHOST/v1",
    "http://vllm.models.svc.cluster.local:8000/v1", "http://vllm.models.svc/v1", "https://ollama.example.com/v1",
    "https://gpu.example.com:11434/v1", "http://user:secret@127.0.0.1/v1", "http://127.1:8000/v1", "http://gpu.corp/v1",
    "http://gpu.tail1234.ts.net/v1", "https://my-ollama.example.com/v1", "http://[::ffff:127.0.0.1]:8000/v1",
    "http://host.containers.internal/v1",
]  # fmt: skip
VENDORS = [
    "https://api.openai.com/v1", "https://ollama.com/v1", "https://models.example/v1", "https://8.8.8.8/v1",
    "http://10.0.0.1.nip.io/v1", "http://172.32.0.1/v1",
    "https://localhost.example.com/v1", "https://api.deepseek.com/v1", "nonsense", "", "http://[", "https://x:99999/v1",
]  # fmt: skip


@pytest.mark.parametrize("model", ["gpt-4o", "openai/gpt-4o-mini", "claude-sonnet-4-5", "grok-4-0709", "o3-mini"])
@pytest.mark.parametrize("api_url", OWN_MACHINES)
def test_what_only_a_vendor_serves_came_through_a_gateway(model: str, api_url: str) -> None:
    priced = Priced(model, NOW, 1_000, 500, api_url=api_url)
    assert PriceList().price(priced) == PriceList().price(priced._replace(api_url=None)) != UNKNOWN


SOLD = [
    *("groq/llama-3.3-70b-versatile", "together_ai/meta-llama/Llama-3.3-70B-Instruct-Turbo", "cerebras/llama3.1-8b"),
    *("accounts/fireworks/models/llama-v3p1-8b-instruct", "us.meta.llama3-3-70b-instruct-v1:0", "moonshot-v1-8k"),
]


@pytest.mark.parametrize("model", SOLD)
def test_what_names_its_seller_came_through_a_gateway(model: str) -> None:
    priced = Priced(model, NOW, 1_000, 500, api_url="http://127.0.0.1:4000/v1")
    assert PriceList().price(priced) == PriceList().price(priced._replace(api_url=None)) != UNKNOWN


def test_a_fine_tuned_model_has_not_its_bases_price() -> None:
    for model in ("ft:gpt-4o-2024-08-06:org::abc", "ft:gpt-4o-mini-2024-07-18:org:name:abc"):
        assert PriceList().price(Priced(model, NOW, 1_000, 500)) == UNKNOWN


@pytest.mark.parametrize("model", ["deepseek-r1:7b", "openai/gpt-oss-20b", "qwen3-32b", "llama-3.1-8b:free"])
@pytest.mark.parametrize("api_url", OWN_MACHINES)
def test_what_runs_on_ones_own_machine_has_no_list_price(model: str, api_url: str) -> None:
    assert PriceList().price(Priced(model, NOW, 1_000, 500, api_url=api_url)) == UNKNOWN


@pytest.mark.parametrize("api_url", VENDORS)
def test_what_runs_at_a_vendors_has_its_list_price(api_url: str) -> None:
    assert PriceList().price(Priced("gpt-4o", NOW, 1_000, 500, api_url=api_url)).cost is not None
