// The one exception tree of moetrim. Each leaf is one exit code of the command line.
#pragma once

#include <stdexcept>
#include <string>

namespace moetrim {

/// Something failed that is neither the caller's input nor a lack of resources. Exit code 1.
class Error : public std::runtime_error {
 public:
  explicit Error(const std::string& message, int exit_code = 1)
      : std::runtime_error(message), exit_code_(exit_code) {}

  /// What the program ends with: 1 failed, 2 usage, 3 invalid input, 4 resources, 5 interrupted.
  int exit_code() const noexcept { return exit_code_; }

 private:
  int exit_code_;
};

/// The request itself makes no sense: an unknown option value, a contradiction. Exit code 2.
class UsageError : public Error {
 public:
  explicit UsageError(const std::string& message) : Error(message, 2) {}
};

/// A file, or a request that the file cannot serve. Names the file, tensor, line or byte. Exit code 3.
class InvalidInput : public Error {
 public:
  explicit InvalidInput(const std::string& message) : Error(message, 3) {}
};

/// Not enough memory or disk. Says how much was needed and how much there was. Exit code 4.
class OutOfResources : public Error {
 public:
  explicit OutOfResources(const std::string& message) : Error(message, 4) {}
};

/// Stopped by a signal after the work so far was saved; the same command goes on. Exit code 5.
class Interrupted : public Error {
 public:
  explicit Interrupted(const std::string& message) : Error(message, 5) {}
};

}  // namespace moetrim
