mod causes;
mod streams;
mod windows;
