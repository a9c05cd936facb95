// A fork-join pool. Every thread starts in its own contiguous share of a loop, so that its reads run on through
// memory, and takes it piece by piece; whoever is done helps the others. A thread that the system holds up delays
// only its own piece. Waiting threads spin briefly (the next region of a decoder follows within microseconds), then
// park: a caller that sleeps while a helper waits for a processor gives it one. A helper offers its processor to
// others before the system takes it away, so that this happens between two pieces, when nobody waits for it.
#include "threads/pool.h"

#include <pthread.h>
#include <sched.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <memory>
#include <mutex>
#include <system_error>
#include <thread>
#include <vector>

#include "abi/error.h"
#include "threads/share.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace edge {
namespace {

constexpr auto spin_time = std::chrono::microseconds(50);
constexpr auto turn_time = std::chrono::milliseconds(2);  // shorter than a time slice of Linux
constexpr int spins_per_clock_read = 64;

inline void relax() {
#if defined(__x86_64__)
    _mm_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
}

// Waits for `ready` with the processor held; false: not within `time`.
template <class Ready>
bool spin_for(std::chrono::microseconds time, const Ready &ready) {
    using clock = std::chrono::steady_clock;
    const auto until = clock::now() + time;
    for (int spins = 1; !ready(); ++spins) {
        relax();
        if (spins % spins_per_clock_read == 0 && clock::now() > until) return false;
    }
    return true;
}

// The time that a thread takes before it offers its processor to others.
struct alignas(64) Turn {
    std::chrono::steady_clock::time_point start{};

    void yield_if_over() {
        if (std::chrono::steady_clock::now() - start < turn_time) return;
        std::this_thread::yield();
        start = std::chrono::steady_clock::now();
    }
};

// Keeps helpers off the caller's processor: the system would wake them there while another program has theirs, and
// caller and helper would take turns, each waiting for the other.
class Places {
   public:
#if defined(__linux__) && !defined(__ANDROID__)
    Places() : usable_(sched_getaffinity(0, sizeof allowed_, &allowed_) == 0) {}

    void set_helpers(std::vector<std::thread> &helpers) {
        usable_ = usable_ && CPU_COUNT(&allowed_) > int(helpers.size());
    }

    // On the caller's thread, before it wakes a helper.
    void keep_apart(std::vector<std::thread> &helpers) {
        const int processor = usable_ ? sched_getcpu() : left_out_;
        if (processor == left_out_) return;
        left_out_ = processor;
        cpu_set_t others = allowed_;
        CPU_CLR(size_t(processor), &others);
        for (std::thread &helper : helpers) {
            pthread_setaffinity_np(helper.native_handle(), sizeof others, &others);
        }
    }

   private:
    cpu_set_t allowed_;
    bool usable_;
    int left_out_ = -1;
#else
    void set_helpers(std::vector<std::thread> &) {}
    void keep_apart(std::vector<std::thread> &) {}
#endif
};

// The threads of a pool, and what they share.
class Team {
   public:
    explicit Team(int32_t threads) : workers_(threads), shares_(size_t(threads)), turns_(size_t(threads)) {
        try {
            helpers_.reserve(size_t(threads));
            for (int32_t worker = 1; worker < threads; ++worker) {
                helpers_.emplace_back([this, worker] { help(worker); });
            }
            places_.set_helpers(helpers_);
        } catch (...) {  // the system has no more threads: a running one must not be destroyed
            stop();
            throw;
        }
    }

    ~Team() { stop(); }

    // False where another thread has a region under way, or an errand.
    bool run(int64_t count, int64_t grain, edge_task task, void *argument) {
        if (const int32_t worker = errand_worker(); worker >= 0) {
            run_region(worker, count, grain, task, argument);
            return true;
        }
        if (busy_.test_and_set(std::memory_order_acquire)) return false;
        places_.keep_apart(helpers_);
        run_region(0, count, grain, task, argument);
        busy_.clear(std::memory_order_release);
        return true;
    }

    // Gives the task to a helper, whose regions all others work at but the caller; false if nobody can take it.
    bool send(Errand task, void *argument) {
        if (workers_ < 2 || busy_.test_and_set(std::memory_order_acquire)) return false;
        places_.keep_apart(helpers_);
        errand_ = task;
        errand_argument_ = argument;
        errand_state_.store(ErrandState::sent);
        call_helpers();
        return true;
    }

    // Until the errand is done, at whose regions the caller works too, or which it does itself if nobody has begun. For
    // any thread.
    void join() {
        std::lock_guard<std::mutex> alone(join_mutex_);
        if (errand_state_.load() == ErrandState::none) return;
        go(0);
        const auto is_done = [&] { return errand_state_.load() == ErrandState::done; };
        uint32_t seen = generation_.load();
        work(0);
        while (!is_done()) {
            const auto news = [&] { return is_done() || generation_.load() != seen; };
            if (!spin_for(spin_time, news)) {
                std::unique_lock<std::mutex> lock(mutex_);
                parked_.fetch_add(1);
                wake_.wait(lock, news);
                parked_.fetch_sub(1);
            }
            seen = generation_.load();
            work(0);
        }
        errand_state_.store(ErrandState::none);
        busy_.clear(std::memory_order_release);
    }

   private:
    enum class ErrandState { none, sent, running, done };

    // Of the calling thread, if it is on the errand; else -1.
    int32_t errand_worker() const {
        const int32_t worker = errand_worker_.load(std::memory_order_acquire);
        return worker >= 0 && pthread_equal(errand_thread_, pthread_self()) ? worker : -1;
    }

    void call_helpers() {
        generation_.fetch_add(1);
        if (parked_.load() > 0) {
            { std::lock_guard<std::mutex> lock(mutex_); }
            wake_.notify_all();
        }
    }

    // Does the errand, if nobody has begun.
    void go(int32_t worker) {
        ErrandState sent = ErrandState::sent;
        if (!errand_state_.compare_exchange_strong(sent, ErrandState::running)) return;
        errand_thread_ = pthread_self();
        errand_worker_.store(worker, std::memory_order_release);
        errand_(errand_argument_);
        errand_worker_.store(-1, std::memory_order_relaxed);
        errand_state_.store(ErrandState::done);
        if (parked_.load() > 0) {
            { std::lock_guard<std::mutex> lock(mutex_); }
            wake_.notify_all();
        }
    }

    void run_region(int32_t own, int64_t count, int64_t grain, edge_task task, void *argument) {
        grain = std::max(grain, (count + max_pieces - 1) / max_pieces);
        const int64_t pieces = (count + grain - 1) / grain;
        region_ = {count, grain, task, argument};
        done_.store(0, std::memory_order_relaxed);
        for (int64_t worker = 0; worker < workers_; ++worker) {
            shares_[size_t(worker)].publish(uint32_t(pieces * worker / workers_),
                                            uint32_t(pieces * (worker + 1) / workers_));
        }
        call_helpers();
        work(own);
        const auto finished = [&] { return done_.load() >= pieces; };
        if (!spin_for(spin_time, finished)) {
            // A helper was descheduled in the middle of a piece: leave it this core.
            std::unique_lock<std::mutex> lock(mutex_);
            caller_parked_.store(true);
            piece_done_.wait(lock, finished);
            caller_parked_.store(false);
        }
    }

    void stop() {
        {
            std::lock_guard<std::mutex> lock(mutex_);
            stopping_.store(true);
        }
        wake_.notify_all();
        for (std::thread &helper : helpers_) helper.join();
    }

    struct Region {
        int64_t count, grain;
        edge_task task;
        void *argument;
    };

    // Does pieces of the current region, its own share first, until none is left.
    void work(int32_t worker) {
        for (int32_t i = 0; i < workers_; ++i) {
            Share &share = shares_[size_t((worker + i) % workers_)];
            for (uint32_t piece; share.claim(&piece);) {
                const int64_t begin = piece * region_.grain,
                              end = std::min(begin + region_.grain, region_.count);
                region_.task(region_.argument, begin, end, worker);
                done_.fetch_add(1);
                if (caller_parked_.load()) {
                    { std::lock_guard<std::mutex> lock(mutex_); }
                    piece_done_.notify_one();
                }
                if (worker > 0) turns_[size_t(worker)].yield_if_over();
            }
        }
    }

    void help(int32_t worker) {
        uint32_t seen = 0;
        const auto new_region = [&] { return generation_.load() != seen; };
        while (!stopping_.load(std::memory_order_relaxed)) {
            while (spin_for(spin_time, new_region)) {
                seen = generation_.load();
                go(worker);
                work(worker);
            }
            std::unique_lock<std::mutex> lock(mutex_);
            parked_.fetch_add(1);
            wake_.wait(lock, [&] { return stopping_.load() || new_region(); });
            parked_.fetch_sub(1);
        }
    }

    const int32_t workers_;
    std::atomic_flag busy_ = ATOMIC_FLAG_INIT;
    Region region_{};
    std::vector<Share> shares_;
    std::vector<Turn> turns_;
    alignas(64) std::atomic<uint32_t> generation_{0};
    alignas(64) std::atomic<int64_t> done_{0};
    alignas(64) std::atomic<int32_t> parked_{0};
    std::atomic<bool> caller_parked_{false}, stopping_{false};
    Errand errand_ = nullptr;
    void *errand_argument_ = nullptr;
    std::atomic<ErrandState> errand_state_{ErrandState::none};
    std::atomic<int32_t> errand_worker_{-1};  // who is on it, and the thread; -1: nobody
    pthread_t errand_thread_{};
    std::mutex join_mutex_;
    std::mutex mutex_;
    std::condition_variable wake_, piece_done_;
    std::vector<std::thread> helpers_;
    Places places_;
};

// Counts the forks between the first process and this one. A child has one thread only, and what its parent's threads
// had locked stays locked: their team is of no use there, not even to be destroyed.
std::atomic<uint32_t> forks{0};

void count_forks() {
    static const int registered = pthread_atfork(nullptr, nullptr, [] { forks.fetch_add(1); });
    static_cast<void>(registered);
}

}  // namespace
}  // namespace edge

struct edge_pool {
    explicit edge_pool(int32_t threads) : workers(threads), team_(std::make_unique<edge::Team>(threads)) {}

    ~edge_pool() {
        if (made_ != edge::forks.load()) static_cast<void>(team_.release());
    }

    void run(int64_t count, int64_t grain, edge_task task, void *argument) {
        if (is_mine() && team_->run(count, grain, task, argument)) return;
        for (int64_t begin = 0; begin < count; begin += grain) {
            task(argument, begin, std::min(begin + grain, count), 0);
        }
    }

    void send(edge::Errand task, void *argument) {
        if (!is_mine() || !team_->send(task, argument)) task(argument);
    }

    void join() {
        if (made_ == edge::forks.load()) team_->join();
    }

    const int32_t workers;

   private:
    // Starts a team in a child at its first region; false where another thread is about that, or the system has no
    // more threads.
    bool is_mine() {
        const uint32_t now = edge::forks.load(std::memory_order_relaxed);
        uint32_t owner = made_.load(std::memory_order_acquire);
        if (owner == now) return true;
        if (owner == nobody || !made_.compare_exchange_strong(owner, nobody)) return false;
        static_cast<void>(team_.release());
        try {
            team_ = std::make_unique<edge::Team>(workers);
        } catch (const std::exception &) { return false; }
        made_.store(now, std::memory_order_release);
        return true;
    }

    static constexpr uint32_t nobody = UINT32_MAX;
    std::unique_ptr<edge::Team> team_;
    std::atomic<uint32_t> made_{edge::forks.load()};  // `forks` of the process whose threads they are
};

edge_status edge_pool_create(int32_t threads, edge_pool **pool) {
    if (pool == nullptr) return edge::fail(EDGE_INVALID, "edge_pool_create: pool is NULL.");
    if (threads < 0 || threads > 1024) {
        return edge::fail(EDGE_INVALID, "The number of threads is %d; it must be 0 (automatic) to 1024.",
                          threads);
    }
    try {
        edge::count_forks();
        *pool = new edge_pool(threads > 0 ? threads : edge::default_threads());
    } catch (const std::system_error &error) {
        return edge::fail(EDGE_NO_MEMORY, "Threads could not be started: %s.",
                          error.code().message().c_str());
    } catch (const std::exception &) {
        return edge::fail(EDGE_NO_MEMORY, "Threads could not be started: there is not enough memory.");
    }
    return EDGE_OK;
}

void edge_pool_destroy(edge_pool *pool) { delete pool; }

void edge_pool_join(edge_pool *pool) {
    if (pool != nullptr) pool->join();
}

void edge::send(edge_pool *pool, Errand task, void *argument) { pool->send(task, argument); }

edge_parallel edge_pool_parallel(edge_pool *pool) {
    if (pool == nullptr) return {nullptr, 1, nullptr};
    return {pool, pool->workers,
            [](void *context, int64_t count, int64_t grain, edge_task task, void *argument) {
                static_cast<edge_pool *>(context)->run(count, grain, task, argument);
            }};
}
