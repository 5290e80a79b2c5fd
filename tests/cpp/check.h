// The smallest test framework that fits: TEST(Name) { ... }, expectations that print every failed
// element, and a main that runs all tests once for each instruction set the processor has.
#ifndef KERAS_NORMS_TESTS_CPP_CHECK_H_
#define KERAS_NORMS_TESTS_CPP_CHECK_H_

#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

#include "custom_ops/core/normalize.h"

namespace check {

struct Test {
  const char* name;
  void (*run)();
};

inline std::vector<Test>& Tests() {
  static std::vector<Test> tests;
  return tests;
}

inline bool Register(const char* name, void (*run)()) {
  Tests().push_back({name, run});
  return true;
}

#define TEST(name)                                                                    \
  static void name();                                                                 \
  [[maybe_unused]] static const bool name##_is_a_test = check::Register(#name, name); \
  static void name()

// How many expectations failed since the test began.
inline int64_t& Failures() {
  static int64_t failures = 0;
  return failures;
}

// What is being tested, printed with each failure.
inline std::string& Context() {
  static std::string context;
  return context;
}

constexpr int64_t kPrinted = 20;  // elements of one array; the rest are counted

inline void Fail(const std::string& what) {
  ++Failures();
  std::printf("  %s: %s\n", Context().c_str(), what.c_str());
}

inline void Expect(bool truth, const std::string& what) {
  if (!truth) Fail("expected: " + what);
}

// Expects close(i) of each i in [0, size) and prints the others with want(i) and got(i).
template <class Close, class Want, class Got>
void ExpectEach(const std::string& what, int64_t size, const Close& close, const Want& want,
                const Got& got) {
  int64_t failed = 0;
  for (int64_t i = 0; i < size; ++i) {
    if (close(i)) continue;
    if (failed++ == 0) Fail(what);
    if (failed > kPrinted) continue;
    const double w = static_cast<double>(want(i)), g = static_cast<double>(got(i));
    std::printf("    %s[%lld]: expected %.9g, got %.9g (difference %.3g)\n", what.c_str(),
                static_cast<long long>(i), w, g, g - w);
  }
  if (failed > kPrinted) {
    std::printf("    ... and %lld more of %lld elements\n",
                static_cast<long long>(failed - kPrinted), static_cast<long long>(size));
  }
}

struct Result {
  int passed = 0, failed = 0;
  bool skipped = false;
};

// Runs the tests whose name contains `filter`.
inline Result RunTests(const std::string& filter) {
  Result result;
  for (const Test& test : Tests()) {
    if (std::string(test.name).find(filter) == std::string::npos) continue;
    Failures() = 0;
    Context() = test.name;
    const auto begin = std::chrono::steady_clock::now();
    test.run();
    const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - begin;
    ++(Failures() == 0 ? result.passed : result.failed);
    std::printf("%s %-9s %s (%.2f s)\n", Failures() == 0 ? "ok    " : "FAILED",
                keras_norms::SimdTarget(), test.name, seconds.count());
    std::fflush(stdout);
  }
  return result;
}

// Runs the tests in a process of their own, because the instruction set is chosen once in each.
inline Result RunTarget(const std::string& target, const std::string& filter) {
  Result result;
  int ends[2];
  if (pipe(ends) != 0) std::abort();
  std::fflush(stdout);
  const pid_t child = fork();
  if (child < 0) std::abort();
  if (child == 0) {
    setenv("KERAS_NORMS_SIMD", target.c_str(), 1);
    if (keras_norms::SimdTarget() == target) {
      result = RunTests(filter);
    } else {
      result.skipped = true;
    }
    const bool told = write(ends[1], &result, sizeof(result)) == sizeof(result);
    std::exit(told && result.failed == 0 ? 0 : 1);
  }
  close(ends[1]);
  const bool told = read(ends[0], &result, sizeof(result)) == sizeof(result);
  close(ends[0]);
  int status = 0;
  waitpid(child, &status, 0);
  if (!told || (status != 0 && result.failed == 0)) {
    std::printf("FAILED %-9s the process ended with status %d%s\n", target.c_str(), status,
                WIFSIGNALED(status) ? " (a signal)" : "");
    ++result.failed;
  }
  if (result.skipped) {
    std::printf("SKIPPED all tests of %s: THIS PROCESSOR LACKS IT\n", target.c_str());
  }
  return result;
}

// `name [filter]`: all instruction sets, or the one that KERAS_NORMS_SIMD names.
inline int Main(int argc, char** argv) {
  std::vector<std::string> targets = {"baseline"};
#if defined(__x86_64__)
  targets.insert(targets.end(), {"avx2", "avx512"});
#endif
  if (const char* wish = std::getenv("KERAS_NORMS_SIMD")) targets = {wish};
  Result all;
  for (const std::string& target : targets) {
    const Result result = RunTarget(target, argc > 1 ? argv[1] : "");
    all.passed += result.passed;
    all.failed += result.failed;
  }
  if (all.passed + all.failed == 0) {
    std::printf("no test ran\n");
    return 1;
  }
  std::printf("%d passed, %d failed\n", all.passed, all.failed);
  return all.failed == 0 ? 0 : 1;
}

}  // namespace check

#endif  // KERAS_NORMS_TESTS_CPP_CHECK_H_
