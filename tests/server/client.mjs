// OpenAI's Node package at our address: prints what it reads as one object of JSON.
// Arguments: the address, a client's key, an owner's key. It runs where node_modules is.
import { createRequire } from "node:module";

const require = createRequire(`${process.cwd()}/`);
const OpenAI = require("openai");
const { zodResponseFormat, zodTextFormat } = require("openai/helpers/zod");
const { z } = require("zod");

const [url, key, ownersKey] = process.argv.slice(2);
const client = new OpenAI({ baseURL: `${url}/v1`, apiKey: key, maxRetries: 0 });
const messages = [{ role: "user", content: "What is for breakfast?" }];
const seen = {};

const whole = await client.chat.completions.create({ model: "ads", messages, seed: 3 });
seen.whole = { ...whole, request_id: whole._request_id };

const stream = await client.chat.completions.create({
  model: "ads",
  messages,
  seed: 3,
  stream: true,
  stream_options: { include_usage: true },
});
seen.chunks = [];
for await (const chunk of stream) seen.chunks.push(chunk);

const left = await client.chat.completions.create({ model: "ads", messages, stream: true });
for await (const chunk of left) {
  seen.left = chunk.choices[0].delta.role;
  break; // closes the connection
}

const Order = z.object({ dish: z.string(), number: z.number().int() });
const runner = client.chat.completions.runTools({
  model: "ads",
  messages,
  tools: [
    {
      type: "function",
      function: {
        name: "order",
        description: "Orders dishes.",
        parameters: z.toJSONSchema(Order),
        parse: (text) => Order.parse(JSON.parse(text)),
        function: ({ dish, number }) => (seen.order = `${dish} for ${number}`),
      },
    },
  ],
});
seen.answer = await runner.finalContent();

const parsed = await client.chat.completions.parse({
  model: "ads",
  messages,
  response_format: zodResponseFormat(Order, "order"),
});
seen.parsed = parsed.choices[0].message.parsed;

seen.response = await client.responses.create({ model: "ads", input: "What is for breakfast?" });
const response = await client.responses.parse({
  model: "ads",
  input: "What is for breakfast?",
  text: { format: zodTextFormat(Order, "order") },
});
seen.parsedResponse = response.output_parsed;
seen.events = [];
for await (const event of client.responses.stream({ model: "ads", input: "Hi" })) seen.events.push(event.type);

seen.models = [];
for await (const model of client.models.list()) seen.models.push(model.id);
seen.model = (await client.models.retrieve("ads/charged")).id;

const once = { headers: { "Idempotency-Key": "node" } };
const charged = { model: "ads/charged", messages };
seen.repeated = [];
for (const _ of [1, 2]) seen.repeated.push((await client.chat.completions.create(charged, once)).auction.id);

seen.errors = {};
for (const [name, request, apiKey] of [
  ["badRequest", { model: "ads", messages: [] }, key],
  ["authentication", { model: "ads", messages }, "guess"],
  ["permission", { model: "ads", messages }, ownersKey],
  ["notFound", { model: "none", messages }, key],
  ["failure", { model: "ads", messages: [{ role: "user", content: "Please fail." }] }, key],
]) {
  try {
    await client.withOptions({ apiKey }).chat.completions.create(request);
  } catch (error) {
    const { status, code, param, type, requestID, message } = error;
    seen.errors[name] = { class: error.constructor.name, status, code, param, type, requestID, message };
  }
}

console.log(JSON.stringify(seen));
