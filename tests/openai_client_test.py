"""OpenAI's own Python package against the server.

By hand, in an environment that has `openai`:

    openai_client_test.py NIBBLE_BINARY MODEL

MODEL has a chat template.
"""
import asyncio
import pathlib
import sys
import unittest

import openai

from server_process import PROMPT, Server

NIBBLE, MODEL = (pathlib.Path(p).resolve() for p in sys.argv[1:3])
MESSAGES = [{"role": "user", "content": "Tell me a story."}]


class OpenAiClientTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.server = Server(NIBBLE, f"m={MODEL}")
        cls.url = f"http://127.0.0.1:{cls.server.port}/v1"
        cls.client = openai.OpenAI(base_url=cls.url, api_key="x", max_retries=0)

    @classmethod
    def tearDownClass(cls):
        assert cls.server.stop() == 0

    def complete(self, prompt=PROMPT, **arguments):
        return self.client.completions.create(model="m", prompt=prompt, **arguments)

    def chat(self, **arguments):
        return self.client.chat.completions.create(model="m", messages=MESSAGES, **arguments)

    def test_models(self):
        self.assertEqual([model.id for model in self.client.models.list()], ["m"])

    def test_completions(self):
        answer = self.complete(max_tokens=20, temperature=0, logprobs=2, n=2, seed=1)
        self.assertEqual(len(answer.choices), 2)
        self.assertEqual(answer.choices[0].text, answer.choices[1].text)
        self.assertEqual(answer.usage.completion_tokens, 40)
        self.assertIsNotNone(answer.usage.prompt_tokens_details.cached_tokens)
        logprobs = answer.choices[0].logprobs
        self.assertEqual(len(logprobs.tokens), 20)
        self.assertEqual(logprobs.top_logprobs[0][logprobs.tokens[0]], logprobs.token_logprobs[0])
        chunks = self.complete(max_tokens=20, temperature=0, stream=True)
        self.assertEqual("".join(c.choices[0].text for c in chunks), answer.choices[0].text)

    def test_chats(self):
        answer = self.chat(max_completion_tokens=20, temperature=0, logprobs=True, top_logprobs=2)
        content = answer.choices[0].message.content
        self.assertEqual(len(answer.choices[0].logprobs.content[0].top_logprobs), 2)
        chunks = list(self.chat(max_completion_tokens=20, temperature=0, stream=True,
                                stream_options={"include_usage": True}))
        self.assertEqual("".join(c.choices[0].delta.content or "" for c in chunks if c.choices),
                         content)
        self.assertEqual(chunks[-1].usage.completion_tokens, answer.usage.completion_tokens)

    def test_stop_and_seed(self):
        whole = self.complete(max_tokens=40, temperature=0).choices[0].text
        stop = whole[len(whole) // 2:][:3]
        answer = self.complete(max_tokens=40, temperature=0, stop=[stop]).choices[0]
        self.assertEqual((answer.text, answer.finish_reason), (whole[:whole.index(stop)], "stop"))
        texts = {self.complete(max_tokens=20, seed=5).choices[0].text for _ in range(2)}
        self.assertEqual(len(texts), 1)

    def test_errors(self):
        for error, param, arguments in (
                (openai.NotFoundError, "model", {"model": "no"}),
                (openai.BadRequestError, "temperature", {"temperature": 9}),
                (openai.BadRequestError, "max_tokens", {"max_tokens": 10**6}),
                (openai.BadRequestError, "n", {"prompt": ["a"] * 100, "n": 10})):
            with self.assertRaises(error) as raised:
                self.client.completions.create(**{"model": "m", "prompt": "a", **arguments})
            self.assertEqual(raised.exception.param, param)

    def test_many_at_once(self):
        async def run():
            client = openai.AsyncOpenAI(base_url=self.url, api_key="x", max_retries=0)
            answers = await asyncio.gather(
                *(client.completions.create(model="m", prompt=PROMPT, max_tokens=10, seed=i)
                  for i in range(40)))
            return [answer.choices[0].text for answer in answers]
        alone = [self.complete(max_tokens=10, seed=i).choices[0].text for i in range(40)]
        self.assertEqual(asyncio.run(run()), alone)


if __name__ == "__main__":
    unittest.main(argv=sys.argv[:1])
