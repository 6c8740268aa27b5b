// The HTTP/1.1 server: connections, their limits, authorization, and the endpoints of OpenAI's API
// over the models that it has.
//
//   GET  /health               200 {"status":"ok"}; 503 while models load and while draining
//   GET  /v1/models, /metrics, /version, /tokenizer_info
//   GET  /, /page/…, /report/… (browser_routes.h)
//   POST /v1/completions, /v1/chat/completions, /tokenize, /detokenize
//
// A client's worst is bounded: bytes of headers and bodies, seconds to send them and to take an
// answer, connections. A connection that ends, or does not take its answer, gives up its sequences.
#ifndef NIBBLE_SERVE_SERVER_H_
#define NIBBLE_SERVE_SERVER_H_

#include <cstdint>
#include <memory>
#include <string>

#include "src/base/cancel.h"
#include "src/base/error.h"
#include "src/serve/served_models.h"

namespace nibble {

struct ServerOptions {
  std::string host = "127.0.0.1";  // an address, not a name
  int port = 8000;                 // 0: any free one
  std::string api_key;             // empty: none is asked for
  std::string report;              // a study's directory to show; empty: none
  int64_t max_connections = 4096;
  uint32_t max_header_bytes = 16 << 10;
  uint64_t max_body_bytes = 8 << 20;
  uint64_t max_total_body_bytes = 256 << 20;  // of all requests that are not yet understood
  int64_t header_seconds = 30;  // from the last answer (or the start) to the end of the headers
  int64_t body_seconds = 30;
  int64_t write_seconds = 30;  // for what is written at a time to be taken
  int threads = 2;             // for connections; the engine has its own
};

class Server {
 public:
  // Listens, and answers 503 until Serve is called. kBadInput where the address cannot be had.
  static Result<std::unique_ptr<Server>> Start(const ServerOptions& options);
  // Waits for no one. Stop must have been called where Serve was.
  ~Server();

  int port() const;
  // Borrows the models until Stop has returned.
  void Serve(const ServedModels& models);
  // New requests get 503 from now on. Returns once those that are being answered are done, or after
  // `seconds`.
  void Drain(int64_t seconds);
  // Ends all connections and the threads.
  void Stop();

 private:
  struct State;
  explicit Server(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

}  // namespace nibble

#endif  // NIBBLE_SERVE_SERVER_H_
