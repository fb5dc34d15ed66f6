// Threads that give way: one that waits sleeps after microseconds, and nobody waits for one that is not scheduled.
//
// All threads of a run make the same calls of `Member::each`, in the same order. A call's pieces are computed by whoever
// takes them, each into memory of the thread's own, and committed once. A thread that finds no piece left makes those
// again that others took and do not finish, as they may be waiting for a processor; whoever is ready first commits. A
// thread that comes late finds its work done and goes on. So on a busy machine a run is as fast as the threads that do
// run, and any of them may be missing for any stretch of it.
#pragma once

#include <algorithm>
#include <array>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <cstring>
#include <exception>
#include <memory>
#include <new>
#include <thread>
#include <type_traits>
#include <utility>
#include <vector>

#if defined(__unix__) || defined(__APPLE__)
#include <pthread.h>
#endif

namespace {

constexpr int MOST_THREADS = 256;
constexpr long MOST_PIECES = 1024;        // of one call
constexpr uint64_t PLACE_BITS = 20;       // of a claim, for the next piece's number
constexpr double PATIENCE = 2e-5;         // seconds that a thread leaves others' pieces to them, beside the time of two

inline void pause_briefly() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
}

inline double now() {
    return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

std::atomic<int> wanted_threads{1};
std::atomic<double> spin_seconds{5e-5};  // that a waiting thread looks for work before it sleeps

struct alignas(64) Counter {
    std::atomic<uint64_t> value{0};
};

// So many parts, dealt out to pieces of which none is longer than another by more than one.
struct Pieces {
    long parts, number;

    static Pieces of(long parts, long most = MOST_PIECES) { return {parts, std::min(parts, most)}; }
    long begin(long piece) const { return piece * parts / number; }
    long end(long piece) const { return begin(piece + 1); }
    long longest() const { return (parts + number - 1) / number; }
};

// What the threads of a run share. Calls are numbered on from run to run, so that nothing has to be set back.
struct Board {
    Counter claims[MOST_THREADS];                // of each thread's stretch: the call, and the next piece
    std::atomic<uint64_t> winners[MOST_PIECES];  // of each piece: the last call for which it is committed
    Counter committed;                           // pieces, of all calls
    uint64_t call = 0, due = 0;                  // before the run: calls made, and their pieces
    uint64_t next_call = 0, next_due = 0;        // after it

    Board() { clear(); }

    void clear() {
        for (auto& claims_ : claims) claims_.value.store(0, std::memory_order_relaxed);
        for (auto& winner : winners) winner.store(0, std::memory_order_relaxed);
        committed.value.store(0, std::memory_order_relaxed);
        next_call = next_due = 0;
    }

    // The next piece of [begin, end) that nobody took for this call; -1 if there is none.
    long claim(int stretch, uint64_t call_, long begin, long end) {
        std::atomic<uint64_t>& claims_ = claims[stretch].value;
        uint64_t seen = claims_.load(std::memory_order_acquire);
        while (true) {
            const uint64_t of = seen >> PLACE_BITS;
            const long piece = of == call_ ? (long)(seen & ((1u << PLACE_BITS) - 1)) : begin;
            if (of > call_ || piece >= end) return -1;
            if (claims_.compare_exchange_weak(seen, call_ << PLACE_BITS | (uint64_t)(piece + 1))) return piece;
        }
    }

    bool win(long piece, uint64_t call_) {
        uint64_t seen = winners[piece].load(std::memory_order_acquire);
        return seen < call_ && winners[piece].compare_exchange_strong(seen, call_);
    }
};

// One thread's way through a run.
class Member {
   public:
    Member(Board& board, int index, int count)
        : board_(board), index_(index), count_(count), call_(board.call), due_(board.due) {}

    // Make all pieces: `compute(piece)` writes to the thread's own memory alone, `commit(piece)` what others see. What
    // an earlier call committed may be read. `compute` may run on while others have gone on to later calls; what it
    // makes of their data is thrown away.
    template <typename Compute, typename Commit>
    void each(long pieces, const Compute& compute, const Commit& commit) {
        call_++, due_ += (uint64_t)pieces;
        if (count_ == 1) {
            for (long piece = 0; piece < pieces; piece++) compute(piece), commit(piece);
            return;
        }
        const double begun = now();
        long made = 0;
        auto make = [&](long piece) {
            compute(piece);
            made++;
            if (!board_.win(piece, call_)) return;
            commit(piece);
            board_.committed.value.fetch_add(1, std::memory_order_acq_rel);
        };
        for (int i = 0; i < count_ && !done(); i++) {  // the own stretch first
            const int stretch = (index_ + i) % count_;
            const Pieces stretches{pieces, count_};
            for (long piece; (piece = board_.claim(stretch, call_, stretches.begin(stretch), stretches.end(stretch))) >= 0;)
                make(piece);
        }
        if (done()) return;
        const double ended = now();
        double patience = PATIENCE + (made ? 2 * (ended - begun) / made : 0.0);
        for (long spins = 0; !done(); spins++) {
            pause_briefly();
            if (spins % 16 == 15 && now() - ended > patience) {
                for (long piece = 0; piece < pieces && !done(); piece++)
                    if (board_.winners[piece].load(std::memory_order_acquire) < call_) make(piece);
                patience = 1e9;  // what is left is being committed, which takes a microsecond
                std::this_thread::yield();
            } else if (spins % 1024 == 1023 && patience == 1e9) {
                std::this_thread::yield();
            }
        }
    }

    uint64_t call() const { return call_; }
    uint64_t due() const { return due_; }

   private:
    bool done() const { return board_.committed.value.load(std::memory_order_acquire) >= due_; }

    Board& board_;
    const int index_, count_;
    uint64_t call_, due_;
};

// Memory of a run, for whatever its threads read: one that was left behind may look at it when the caller has gone on.
class Arena {
   public:
    void reserve(size_t bytes) {
        if (memory_.size() < bytes) std::vector<char>().swap(memory_), memory_.resize(bytes);
        used_ = 0;
    }

    template <typename Value>
    Value* space(size_t count) {
        Value* at = reinterpret_cast<Value*>(memory_.data() + used_);
        used_ += room<Value>(count);
        return at;
    }

    template <typename Value>
    const Value* copy(const Value* from, size_t count) {
        Value* to = space<Value>(count);
        if (count) std::memcpy(static_cast<void*>(to), from, count * sizeof(Value));
        return to;
    }

    template <typename Value>
    static size_t room(size_t count) {
        return (count * sizeof(Value) + 63) / 64 * 64;
    }

   private:
    std::vector<char> memory_;
    size_t used_ = 0;
};

// One run: what is to be done, and who is at it.
struct Run {
    Board board;
    Arena arena;
    int members = 1;
    std::atomic<int> inside{0};  // threads but for the caller's
    alignas(64) char body[512];
    void (*join)(Run&, Member&) = nullptr;
};

// Threads of this process that help with runs. Made when they are first wanted, and anew after a fork.
class Pool {
   public:
    static Pool& of_process() {
        Pool* pool = current().load();
        if (!pool) {
            auto made = std::make_unique<Pool>();
            if (current().compare_exchange_strong(pool, made.get())) pool = made.release();
#if defined(__unix__) || defined(__APPLE__)
            static const int registered = pthread_atfork(nullptr, nullptr, [] { current().store(nullptr); });
            (void)registered;
#endif
        }
        return *pool;
    }

    // Do `prepare(arena)(member)` with this thread and up to `threads - 1` others, and then `finish()`. `prepare` puts
    // what is read into the arena, where it needs `bytes`. Others may be in the middle of a piece, of no use any more,
    // when this returns; where they look at what is not in the arena, `wait` for them.
    template <typename Prepare, typename Finish>
    void run(int threads, size_t bytes, bool wait, const Prepare& prepare, const Finish& finish) {
        using Body = decltype(prepare(std::declval<Arena&>()));
        static_assert(std::is_trivially_destructible_v<Body> && sizeof(Body) <= sizeof(Run::body));
        if (threads <= 1 || busy_.test_and_set(std::memory_order_acquire)) {  // another thread of Python's has them
            static Board unused;
            static thread_local Arena arena;
            arena.reserve(bytes);
            Member member(unused, 0, 1);
            prepare(arena)(member);
            return finish();
        }
        try {
            Run& run = idle();
            run.arena.reserve(bytes);
            new (run.body) Body(prepare(run.arena));
            run.join = [](Run& of, Member& member) { (*std::launder(reinterpret_cast<Body*>(of.body)))(member); };
            run.members = 1 + grow(std::min(threads, MOST_THREADS) - 1);
            make(run, wait);
            finish();
        } catch (...) {
            busy_.clear(std::memory_order_release);
            throw;
        }
        busy_.clear(std::memory_order_release);
    }

    // Wait until no thread looks at anything any more.
    void settle() {
        for (Run& run : runs_) await_others(run);
    }

   private:
    static std::atomic<Pool*>& current() {
        static std::atomic<Pool*> pool{nullptr};
        return pool;
    }

    Run& idle() {  // the first that nobody is inside of
        for (Run& run : runs_)
            if (!run.inside.load()) return run;
        await_others(runs_[0]);
        return runs_[0];
    }

    void make(Run& run, bool wait) {
        const uint32_t last = generation_.load(), generation = last + 1 ? last + 1 : 1;
        run.board.call = run.board.next_call, run.board.due = run.board.next_due;
        open_run_.store(&run);
        open_.store(generation);
        generation_.store(generation);
        if (run.members > 1) generation_.notify_all();
        Member member(run.board, 0, run.members);
        std::exception_ptr failed;
        try {
            run.join(run, member);
        } catch (...) {
            failed = std::current_exception();
        }
        open_.store(0);
        if (wait || failed) await_others(run);
        if (failed) {  // the others may have gone further, or not as far
            run.board.clear();
            std::rethrow_exception(failed);
        }
        run.board.next_call = member.call(), run.board.next_due = member.due();
    }

    int grow(int wanted) {  // to so many helpers, if the system has them
        while (helpers_ < wanted) {
            try {
                std::thread([this, index = helpers_ + 1] { serve(index); }).detach();
            } catch (const std::exception&) {
                break;
            }
            helpers_++;
        }
        return std::min(helpers_, wanted);
    }

    void serve(int index) {
        for (uint32_t seen = 0;;) {
            seen = await_run(seen);
            Run* run = open_run_.load();
            run->inside.fetch_add(1);
            if (open_.load() == seen && open_run_.load() == run && index < run->members) {
                try {
                    Member member(run->board, index, run->members);
                    run->join(*run, member);
                } catch (...) {  // no memory: the others make this thread's pieces, too
                }
            }
            if (run->inside.fetch_sub(1) == 1) run->inside.notify_all();
        }
    }

    uint32_t await_run(uint32_t seen) {
        const double begun = now();
        for (long spins = 0;; spins++) {
            const uint32_t generation = generation_.load(std::memory_order_acquire);
            if (generation != seen) return generation;
            pause_briefly();
            if (spins % 16 == 15 && now() - begun > spin_seconds.load(std::memory_order_relaxed)) generation_.wait(seen);
        }
    }

    void await_others(Run& run) {
        const double begun = now();
        for (long spins = 0;; spins++) {
            const int inside = run.inside.load();
            if (!inside) return;
            pause_briefly();
            if (spins % 16 == 15 && now() - begun > spin_seconds.load(std::memory_order_relaxed)) run.inside.wait(inside);
        }
    }

    std::array<Run, 8> runs_;
    std::atomic<Run*> open_run_{nullptr};
    std::atomic_flag busy_ = ATOMIC_FLAG_INIT;
    std::atomic<uint32_t> generation_{0}, open_{0};
    int helpers_ = 0;
};

// Memory of a thread's own, by what it is for.
enum Purpose { ROWS, SCALES, WIDENED, SUMS, QUERIES, SCORES, MADE, NORMED, PURPOSES };

// It stays as it is until its thread asks for the same purpose again, and is kept for the next run.
inline void* scratch_bytes(Purpose purpose, size_t bytes) {
    static thread_local std::vector<char> held[PURPOSES];
    std::vector<char>& memory = held[purpose];
    if (memory.size() < bytes + 64) std::vector<char>().swap(memory), memory.resize(bytes + 64);
    return reinterpret_cast<void*>((reinterpret_cast<uintptr_t>(memory.data()) + 63) / 64 * 64);
}

template <typename Value>
Value* scratch(Purpose purpose, size_t count) {
    return static_cast<Value*>(scratch_bytes(purpose, count * sizeof(Value)));
}

}  // namespace
