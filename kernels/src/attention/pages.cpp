// Slabs of pages, the number of each page's users, and tables of pages.
#include "attention/pages.h"

#include <algorithm>
#include <cstring>

#include "memory/memory.h"

namespace edge {
namespace {

constexpr uint64_t most_spare_bytes = 16 << 20;  // of free pages of a slab whose memory is not given back

}  // namespace

struct PagePool::Slab {
    uint8_t *memory;
    uint64_t unused = 0;           // from this page on none has ever been used
    uint64_t used = 0;             // pages with users
    std::vector<uint8_t *> free;   // were used before, the latest last: their memory is there
    std::vector<uint8_t *> empty;  // were used before: their memory was given back
    std::vector<int32_t> users;    // [slab_pages]
};

PagePool::PagePool(uint64_t bytes, uint64_t slab_bytes)
    : page_bytes(bytes), slab_pages_(std::max<uint64_t>(1, slab_bytes / bytes)) {}

PagePool::~PagePool() {
    for (const auto &slab : slabs_) unmap_memory(slab->memory, slab_pages_ * page_bytes);
}

PagePool::Slab &PagePool::slab_of(const uint8_t *page) const {
    return **std::find_if(slabs_.begin(), slabs_.end(), [&](const std::unique_ptr<Slab> &slab) {
        return page >= slab->memory && page < slab->memory + slab_pages_ * page_bytes;
    });
}

int32_t &PagePool::users_of(const uint8_t *page) const {
    Slab &slab = slab_of(page);
    return slab.users[uint64_t(page - slab.memory) / page_bytes];
}

PagePool::Slab *PagePool::slab_with_room() {
    for (const auto &slab : slabs_) {
        if (!slab->free.empty() || !slab->empty.empty() || slab->unused < slab_pages_) return slab.get();
    }
    auto fresh = std::make_unique<Slab>();
    fresh->users.resize(slab_pages_);
    fresh->free.reserve(slab_pages_);
    fresh->empty.reserve(slab_pages_);
    slabs_.reserve(slabs_.size() + 1);
    fresh->memory = static_cast<uint8_t *>(map_memory(slab_pages_ * page_bytes, Commit::when_written));
    if (fresh->memory == nullptr) return nullptr;
    slabs_.push_back(std::move(fresh));
    return slabs_.back().get();
}

bool PagePool::prepare() {
    const std::lock_guard<std::mutex> lock(mutex_);
    return slab_with_room() != nullptr;
}

uint8_t *PagePool::take() {
    const std::lock_guard<std::mutex> lock(mutex_);
    Slab *const found = slab_with_room();
    if (found == nullptr) return nullptr;
    Slab &slab = *found;
    uint8_t *page;
    if (!slab.free.empty() || !slab.empty.empty()) {
        std::vector<uint8_t *> &from = slab.free.empty() ? slab.empty : slab.free;
        page = from.back();
        from.pop_back();
    } else {
        page = slab.memory + slab.unused++ * page_bytes;
    }
    slab.users[uint64_t(page - slab.memory) / page_bytes] = 1;
    ++slab.used;
    ++used_;
    return page;
}

void PagePool::share(uint8_t *page) {
    const std::lock_guard<std::mutex> lock(mutex_);
    ++users_of(page);
}

void PagePool::release(uint8_t *page) {
    const std::lock_guard<std::mutex> lock(mutex_);
    Slab &slab = slab_of(page);
    if (--slab.users[uint64_t(page - slab.memory) / page_bytes] > 0) return;
    // Some stay as they are: a sequence that is cut back grows again.
    if ((slab.free.size() + 1) * page_bytes <= most_spare_bytes) {
        slab.free.push_back(page);
    } else {
        decommit_memory(page, page_bytes);
        slab.empty.push_back(page);
    }
    --used_;
    if (--slab.used > 0) return;
    unmap_memory(slab.memory, slab_pages_ * page_bytes);
    slabs_.erase(std::find_if(slabs_.begin(), slabs_.end(),
                              [&](const std::unique_ptr<Slab> &each) { return each.get() == &slab; }));
}

bool PagePool::is_shared(const uint8_t *page) const {
    const std::lock_guard<std::mutex> lock(mutex_);
    return users_of(page) > 1;
}

uint64_t PagePool::used_bytes() const {
    const std::lock_guard<std::mutex> lock(mutex_);
    return used_ * page_bytes;
}

PageTable::PageTable(std::shared_ptr<PagePool> pool, int64_t most_pages) : pool_(std::move(pool)) {
    pages_.reserve(size_t(most_pages));  // a pass allocates nothing
}

bool PageTable::resize(int64_t count) {
    const int64_t before = this->count();
    while (this->count() > count) {
        pool_->release(pages_.back());
        pages_.pop_back();
    }
    while (this->count() < count) {
        uint8_t *const page = pool_->take();
        if (page == nullptr) {
            resize(before);
            return false;
        }
        pages_.push_back(page);
    }
    return true;
}

bool PageTable::own(int64_t first) {
    for (int64_t i = first; i < count(); ++i) {
        uint8_t *&page = pages_[size_t(i)];
        if (!pool_->is_shared(page)) continue;
        uint8_t *const copy = pool_->take();
        if (copy == nullptr) return false;
        std::memcpy(copy, page, pool_->page_bytes);
        pool_->release(page);
        page = copy;
    }
    return true;
}

void PageTable::share(const PageTable &other, int64_t count) {
    resize(0);
    for (int64_t i = 0; i < count; ++i) {
        pool_->share(other.pages_[size_t(i)]);
        pages_.push_back(other.pages_[size_t(i)]);
    }
}

}  // namespace edge
