// What the page says, in English and Indonesian.
const WORDS = {
  en: {
    "after": "Assistant",
    "all models": "Models", "answer failed": "The answer failed: {reason}",
    "at this pace": "Month at this pace", "activate": "Activate", "by day": "By day", "by model": "By model",
    "chat": "Chat", "chosen days": "Chosen days", "conversation": "Conversation", "conversations": "Conversations",
    "conversations of": "Conversations of {day}", "cost": "Cost", "csv": "Download CSV", "daily chart": "{what} by day, {first} to {last}",
    "day": "Day", "deactivate": "Deactivate", "deleted": "(deleted)", "each answer": "{tokens} tokens ({input} in, {output} out), {cost}, {model}",
    "estimated": "Estimated", "failed": "The server answered with an error ({status}).", "first day": "From",
    "for prices": "For prices.toml", "inactive": "inactive", "input": "Input", "language": "Language", "last": "Last message", "last day": "To", "loading": "Loading…",
    "log in": "Log in", "log out": "Log out", "message": "Message", "messages": "Messages", "model": "Model", "month": "Month",
    "monthly chart": "{what} by month", "months": "Months", "new conversation": "New conversation", "next": "Next page", "no model": "(no model)",
    "no price": "no price", "none": "(none)", "nothing": "No usage in these days.", "nothing yet": "No usage yet. Each answer of a model is counted here at once.",
    "of user": "Usage of {name}", "order": "Sort by", "output": "Output", "page title": "Usage", "password": "Password", "previous": "Previous page", "price": "Price",
    "priced": "priced", "priced in part": "{part} of {all} messages without a price", "question": "Your message", "search": "Username contains",
    "send": "Send", "show": "Show", "skip": "Skip to the content", "start": "Say something. Each answer shows its tokens and its cost.",
    "sure": "Deactivate {name}? Every login ends, and new ones are refused.", "time zone": "Days are days in the time zone {zone}.",
    "tokens": "Tokens", "total": "Total", "unknown price": "no price known", "unpriced": "Without a price",
    "unpriced note": "{count} messages have no known price, and are not in the cost.", "estimated note": "The tokens of {count} messages are estimates: the provider reported none.",
    "unreachable": "The server is unreachable. Try again.", "usage": "Usage", "user": "User", "username": "Username", "users": "Users", "who": "You", "what": "Figures",
    "everyone": "Everyone", "health": "Health", "now": "Now", "since start": "Since the server started",
    "backfill due": "The sums are not complete yet: run python migrate_token_data.py.", "sums complete": "The sums are complete. python migrate_token_data.py --verify proves them.",
    "health note": "The log has the reason of each failure. GET /metrics has the same figures for Prometheus.",
    "health messages_pending": "Answers in progress", "health messages": "Messages counted", "health estimated": "Estimated", "health unpriced": "Without a price",
    "health complete": "Answers complete", "health interrupted": "Answers interrupted", "health failed": "Answers failed",
    "health model_retries": "Retries of the model", "health transaction_retries": "Retries of transactions", "health settlement_failures": "Settled in a simpler way",
  },
  id: {
    "after": "Asisten",
    "all models": "Model", "answer failed": "Jawaban gagal: {reason}",
    "at this pace": "Perkiraan sebulan", "activate": "Aktifkan", "by day": "Per hari", "by model": "Per model",
    "chat": "Obrolan", "chosen days": "Hari yang dipilih", "conversation": "Percakapan", "conversations": "Percakapan",
    "conversations of": "Percakapan pada {day}", "cost": "Biaya", "csv": "Unduh CSV", "daily chart": "{what} per hari, {first} sampai {last}",
    "day": "Hari", "deactivate": "Nonaktifkan", "deleted": "(dihapus)", "each answer": "{tokens} token ({input} masuk, {output} keluar), {cost}, {model}",
    "estimated": "Perkiraan", "failed": "Server menjawab dengan kesalahan ({status}).", "first day": "Dari",
    "for prices": "Untuk prices.toml", "inactive": "nonaktif", "input": "Masuk", "language": "Bahasa", "last": "Pesan terakhir", "last day": "Sampai", "loading": "Memuat…",
    "log in": "Masuk", "log out": "Keluar", "message": "Pesan", "messages": "Pesan", "model": "Model", "month": "Bulan",
    "monthly chart": "{what} per bulan", "months": "Bulan", "new conversation": "Percakapan baru", "next": "Halaman berikutnya", "no model": "(tanpa model)",
    "no price": "tanpa harga", "none": "(tidak ada)", "nothing": "Tidak ada pemakaian pada hari-hari ini.", "nothing yet": "Belum ada pemakaian. Setiap jawaban model langsung dihitung di sini.",
    "of user": "Pemakaian {name}", "order": "Urutkan", "output": "Keluar", "page title": "Pemakaian", "password": "Kata sandi", "previous": "Halaman sebelumnya", "price": "Harga",
    "priced": "ada harga", "priced in part": "{part} dari {all} pesan tanpa harga", "question": "Pesan Anda", "search": "Nama pengguna memuat",
    "send": "Kirim", "show": "Tampilkan", "skip": "Langsung ke isi", "start": "Tulis sesuatu. Setiap jawaban menampilkan token dan biayanya.",
    "sure": "Nonaktifkan {name}? Semua sesi berakhir, dan sesi baru ditolak.", "time zone": "Hari dihitung dalam zona waktu {zone}.",
    "tokens": "Token", "total": "Jumlah", "unknown price": "harga tidak diketahui", "unpriced": "Tanpa harga",
    "unpriced note": "{count} pesan tidak diketahui harganya, dan tidak termasuk dalam biaya.", "estimated note": "Token {count} pesan adalah perkiraan: penyedia tidak melaporkannya.",
    "unreachable": "Server tidak dapat dihubungi. Coba lagi.", "usage": "Pemakaian", "user": "Pengguna", "username": "Nama pengguna", "users": "Pengguna", "who": "Anda", "what": "Angka",
    "everyone": "Semua pengguna", "health": "Kesehatan", "now": "Sekarang", "since start": "Sejak server dimulai",
    "backfill due": "Jumlah belum lengkap: jalankan python migrate_token_data.py.", "sums complete": "Jumlah sudah lengkap. python migrate_token_data.py --verify membuktikannya.",
    "health note": "Alasan setiap kegagalan ada di log. GET /metrics berisi angka yang sama untuk Prometheus.",
    "health messages_pending": "Jawaban berlangsung", "health messages": "Pesan dihitung", "health estimated": "Perkiraan", "health unpriced": "Tanpa harga",
    "health complete": "Jawaban lengkap", "health interrupted": "Jawaban terputus", "health failed": "Jawaban gagal",
    "health model_retries": "Percobaan ulang model", "health transaction_retries": "Percobaan ulang transaksi", "health settlement_failures": "Diselesaikan dengan cara sederhana",
  },
};

export const LANGUAGES = { en: "English", id: "Bahasa Indonesia" };
const KEPT = "foundation-language";

function preferred() {
  const wanted = [localStorage.getItem(KEPT), ...navigator.languages.map((name) => name.split("-")[0])];
  return wanted.find((name) => name in WORDS) ?? "en";
}

export const language = preferred();

export function speak(name) {
  localStorage.setItem(KEPT, name);
  location.reload();
}

export function t(key, values = {}) {
  return WORDS[language][key].replace(/{(\w+)}/g, (_, name) => values[name]);
}
