// The server's endpoints, as the page uses them.

let key = "";
export function setKey(value) {
  key = value;
}

export class ApiError extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

async function request(path, options = {}) {
  const headers = {...options.headers};
  if (key) headers.Authorization = `Bearer ${key}`;
  const response = await fetch(path, {...options, headers, cache: "no-store"});
  if (response.ok) return response;
  let message = `${response.status} ${response.statusText}`;
  try {
    message = (await response.json()).error.message || message;
  } catch {
    // Not one of the API's errors.
  }
  throw new ApiError(response.status, message);
}

export const pageSettings = async () => (await request("page/settings.json")).json();
export const metricsText = async () => (await request("metrics")).text();
export const openReport = () => request("report/");

export async function modelNames() {
  const list = await (await request("v1/models")).json();
  return list.data.map((model) => model.id);
}

// The data of a stream's events, up to "[DONE]". An event may come in pieces, and several together.
export async function* eventData(stream) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  let pending = "";
  try {
    while (true) {
      const {value, done} = await reader.read();
      if (done) throw new ApiError(0, "the server ended the answer before it was complete");
      pending += value;
      const lines = pending.split("\n");
      pending = lines.pop();
      for (const line of lines) {
        if (!line.startsWith("data:")) continue;
        const data = line.slice(5).trim();
        if (data === "[DONE]") return;
        yield JSON.parse(data);
      }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}

// The answer's chunks. Throws ApiError, also for an error that comes within the stream, and
// AbortError once the signal is given.
export async function* streamChat(body, signal) {
  const response = await request("v1/chat/completions", {
    method: "POST",
    headers: {"Content-Type": "application/json"},
    body: JSON.stringify({...body, stream: true, stream_options: {include_usage: true}}),
    signal,
  });
  for await (const chunk of eventData(response.body)) {
    if (chunk.error) throw new ApiError(chunk.error.code, chunk.error.message);
    yield chunk;
  }
}
