// Load against a server with OpenAI's API: requests for streamed completions, and when the parts of
// their answers came.
//
// A level is either a closed loop, in which a number of clients each send a request, take its
// answer and send the next (who waits does not ask: the rate follows the server's speed), or
// requests that arrive as a Poisson process of a given rate whatever the server does (which shows
// at which rate it no longer keeps up).
#ifndef NIBBLE_LOAD_LOAD_LEVEL_H_
#define NIBBLE_LOAD_LOAD_LEVEL_H_

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "src/base/cancel.h"
#include "src/base/error.h"
#include "src/load/target.h"

namespace nibble {

enum class Arrivals { kClosedLoop, kPoisson };
enum class EndOfSequence { kIgnore, kStop };

// What is asked for.
struct LoadWorkload {
  std::string model;
  int64_t input_length = 512;   // of prompts of random token ids
  int64_t output_length = 200;  // at most
  // Ids are drawn from 3 (what is below is often a control token) up to this; how fast a server is
  // does not depend on which they are.
  int32_t vocabulary = 256;
  std::vector<std::string> texts;  // prompts in place of random ids, in turn
  double temperature = 0;
  EndOfSequence end = EndOfSequence::kIgnore;  // kIgnore: by the member ignore_eos, as vLLM has it
  uint64_t seed = 1;
};

struct LoadLevel {
  Arrivals arrivals = Arrivals::kClosedLoop;
  double value = 1;      // clients, or requests a second
  int64_t requests = 0;  // at most, beside the warm-up's
  double seconds = 0;    // after which no request is sent any more; 0: no limit
  int64_t warm_up = 0;   // requests before them, of at most as many clients
};

struct LoadLimits {
  int threads = 2;
  int64_t open_requests = 16384;  // at a time; a Poisson process's further ones fail
  double request_seconds = 600;   // for one answer
};

// One request; times are seconds since the level's first.
struct LoadRecord {
  double sent_s = 0;
  double first_s = 0;         // the first token's arrival
  double last_s = 0;          // the last one's
  int64_t input_tokens = 0;   // as the server counted; 0 where it did not
  int64_t output_tokens = 0;  // as the server counted; where it did not, parts of the stream
  std::string failure;        // its kind ("HTTP 429", "timeout", …); empty: a complete answer
};

// The models that the server names. kBadInput where it does not answer so.
Result<std::vector<std::string>> ListModels(const LoadTarget& target, const LoadLimits& limits,
                                            const CancelToken& cancel);

// One level; its records are in the order in which the requests were sent. `first_request` numbers
// its first request: requests of different numbers have different prompts. `on_done` is told how
// many are done, from any thread but never from two at once. kBadInput where the host has no
// address.
Result<std::vector<LoadRecord>> RunLoadLevel(const LoadTarget& target, const LoadWorkload& workload,
                                             const LoadLevel& level, const LoadLimits& limits,
                                             int64_t first_request,
                                             const std::function<void(int64_t)>& on_done,
                                             const CancelToken& cancel);

// The body of request `number`.
std::string LoadRequestBody(const LoadWorkload& workload, int64_t number);

}  // namespace nibble

#endif  // NIBBLE_LOAD_LOAD_LEVEL_H_
