// What the machine, or the container around the process, has to offer.

#include "moetrim/machine.h"

#include <algorithm>
#include <fstream>
#include <limits>
#include <optional>
#include <string>

#include <sched.h>
#include <unistd.h>

namespace moetrim {

namespace {

constexpr std::uint64_t kNoLimit = std::numeric_limits<std::uint64_t>::max();

/// The number at the start of a file; nothing for "max" or a file that is not there.
std::optional<std::uint64_t> number_in(const std::string& file) {
  std::ifstream in(file);
  std::uint64_t value = 0;
  if (!(in >> value)) return std::nullopt;
  return value;
}

/// "MemAvailable:  123 kB" in /proc/meminfo.
std::uint64_t machine_available() {
  std::ifstream in("/proc/meminfo");
  std::string name, unit;
  std::uint64_t kib = 0;
  while (in >> name >> kib) {
    if (name == "MemAvailable:") return kib * 1024;
    in.ignore(std::numeric_limits<std::streamsize>::max(), '\n');
  }
  return static_cast<std::uint64_t>(sysconf(_SC_PHYS_PAGES)) * static_cast<std::uint64_t>(sysconf(_SC_PAGESIZE));
}

/// Page cache is charged to the group but given back when memory is short.
std::uint64_t reclaimable(const std::string& stat_file) {
  std::ifstream in(stat_file);
  std::string name;
  std::uint64_t value = 0;
  std::uint64_t sum = 0;
  while (in >> name >> value) {
    if (name == "inactive_file" || name == "active_file" || name == "total_inactive_file") sum += value;
  }
  return sum;
}

std::uint64_t left_of(const std::string& limit_file, const std::string& usage_file, const std::string& stat_file) {
  const auto limit = number_in(limit_file);
  const auto usage = number_in(usage_file);
  if (!limit || !usage) return kNoLimit;
  const std::uint64_t used = *usage - std::min(*usage, reclaimable(stat_file));
  return *limit - std::min(*limit, used);
}

struct CgroupFiles {
  const char* limit;
  const char* usage;
};

/// What a group and every group above it leave.
std::uint64_t left_of_groups(const std::string& root, std::string group, const CgroupFiles& files) {
  std::uint64_t least = kNoLimit;
  while (true) {
    const std::string folder = root + group + "/";
    least = std::min(least, left_of(folder + files.limit, folder + files.usage, folder + "memory.stat"));
    const auto slash = group.rfind('/');
    if (slash == std::string::npos) return least;
    group.resize(slash);
  }
}

/// The process's groups as /proc/self/cgroup names them: "0::/a/b" in version 2, "4:memory:/a/b" in version 1.
std::uint64_t cgroup_available() {
  std::uint64_t least = kNoLimit;
  std::ifstream in("/proc/self/cgroup");
  std::string line;
  while (std::getline(in, line)) {
    const auto second = line.find(':', line.find(':') + 1);
    if (second == std::string::npos) continue;
    std::string group = line.substr(second + 1);
    if (group == "/") group.clear();
    if (line.starts_with("0::")) {
      least = std::min(least, left_of_groups("/sys/fs/cgroup", group, {"memory.max", "memory.current"}));
    } else if (line.find(":memory:") != std::string::npos) {
      least = std::min(least, left_of_groups("/sys/fs/cgroup/memory", group, {"memory.limit_in_bytes", "memory.usage_in_bytes"}));
    }
  }
  return least;
}

}  // namespace

std::uint64_t available_memory() { return std::min(machine_available(), cgroup_available()); }

int usable_cores() {
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof set, &set) != 0) return 1;
  return std::max(1, CPU_COUNT(&set));
}

}  // namespace moetrim
