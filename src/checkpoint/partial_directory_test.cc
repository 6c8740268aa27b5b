#include "src/checkpoint/partial_directory.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/file.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>

#include "src/base/file.h"
#include "src/checkpoint/test_files.h"

namespace nibble {
namespace {

// The number of a process that has ended.
pid_t DeadProcess() {
  const pid_t child = ::fork();
  if (child == 0) std::_Exit(0);
  ::waitpid(child, nullptr, 0);
  return child;
}

std::string MakeLeftover(const TempDirectory& temp, const std::string& name) {
  const std::string path = temp / name;
  std::filesystem::create_directories(path + "/inner");
  EXPECT_TRUE(WriteFileAtomic(path + "/model.safetensors", "half").has_value());
  return path;
}

TEST(PartialDirectory, GoesWithItsObjectUnlessKept) {
  const TempDirectory temp;
  std::string path;
  {
    auto partial = PartialDirectory::Create(temp / "out");
    ASSERT_OK(partial);
    path = partial->path();
    EXPECT_TRUE(IsDirectory(path));
    PartialDirectory moved = *std::move(partial);
    EXPECT_EQ(moved.path(), path);
    EXPECT_TRUE(WriteFileAtomic(path + "/file", "content").has_value());
  }
  EXPECT_FALSE(FileExists(path));
  {
    auto partial = PartialDirectory::Create(temp / "out");
    ASSERT_OK(partial);
    partial->Keep();
  }
  EXPECT_TRUE(IsDirectory(path));
}

TEST(PartialDirectory, RemovesWhatADeadProcessLeft) {
  const TempDirectory temp;
  const std::string dead = std::to_string(DeadProcess());
  const std::string abandoned = MakeLeftover(temp, "out.partial-" + dead);
  // A process number that has come back: ours, but nothing of ours.
  const std::string ours = MakeLeftover(temp, "out.partial-" + std::to_string(::getpid()));
  const std::vector<std::string> others = {
      MakeLeftover(temp, "out"), MakeLeftover(temp, "out2.partial-" + dead),
      MakeLeftover(temp, "out.partial-" + dead + "x"), MakeLeftover(temp, "out.partial-"),
      MakeLeftover(temp, "out.partial--" + dead)};
  RemoveAbandonedPartials(temp / "out");
  EXPECT_FALSE(FileExists(abandoned));
  EXPECT_FALSE(FileExists(ours));
  for (const std::string& other : others) {
    EXPECT_TRUE(FileExists(other + "/model.safetensors")) << other;
  }
}

TEST(PartialDirectory, NeverRemovesALiveOnes) {
  const TempDirectory temp;
  // By its process: the parent of this test lives.
  const std::string parent = MakeLeftover(temp, "out.partial-" + std::to_string(::getppid()));
  // By its lock: its process number means nothing here, as one of another container's.
  const std::string locked = MakeLeftover(temp, "out.partial-" + std::to_string(DeadProcess()));
  const int lock = ::open(locked.c_str(), O_RDONLY | O_DIRECTORY);
  ASSERT_EQ(::flock(lock, LOCK_EX), 0);
  auto own = PartialDirectory::Create(temp / "out");
  ASSERT_OK(own);
  RemoveAbandonedPartials(temp / "out");
  EXPECT_TRUE(FileExists(parent + "/model.safetensors"));
  EXPECT_TRUE(FileExists(locked + "/model.safetensors"));
  EXPECT_TRUE(IsDirectory(own->path()));
  ::close(lock);
  RemoveAbandonedPartials(temp / "out");
  EXPECT_FALSE(FileExists(locked));
}

}  // namespace
}  // namespace nibble
